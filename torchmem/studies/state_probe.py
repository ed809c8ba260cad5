"""Show an agent of Crafter the same scenes with other vitals: what becomes of its value and its actions?

Scenes are recorded steps; only the status bar of the picture is drawn anew (`crafter_bar`), so that nothing but what
the agent sees of itself differs. Source: state_probe of vviggyy/dreamerv3f, which edits the live game.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torchmem.analysis.nulls import resample_groups
from torchmem.studies.crafter_bar import HIGHEST, Bar, BarError, changed
from torchmem.studies.dream_tracks import read_steps
from torchmem.studies.state_probe_result import StateProbeResult
from torchmem.surgery.schedule import mapped

__all__ = ["StateProbeResult", "probe_state"]



def probe_state(
    model: Any,
    recording: Any,
    *,
    scenes: int = 8,
    every: int = 20,
    vitals: Sequence[str] = ("food", "drink", "energy"),
    levels: Sequence[int] = (0, 3, 6, 9),
    control: str = "sapling",
    history: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> StateProbeResult:
    """All combinations of `levels` of `vitals` in each of `scenes` scenes, every `every` steps of the recording.

    history: the agent remembers the episode up to the scene; default: it has just woken up. control: an item whose
    count is swept alone, at the same levels: what a change of the bar does that means little. Value and probabilities
    of actions are read after one step of the agent, with the likeliest latents. Intervals: bootstrap over scenes.

    Raises BarError where the recording is not of Crafter with pictures and inventory, ValueError for wrong arguments.
    """
    bar = Bar.of(recording)
    wrong = [level for level in levels if not 0 <= level <= HIGHEST]
    if wrong or len(set(levels)) < 2 or scenes < 2 or every < 1:
        raise BarError(f"levels={list(levels)}, scenes={scenes}, every={every}: two or more levels from 0 to "
                       f"{HIGHEST}, 2 or more scenes")  # fmt: skip
    if control in vitals or not vitals:
        raise BarError(f"vitals={list(vitals)}, control={control!r}: one vital at least, and another item as control")
    keys = list(model.spec.action)
    if len(keys) != 1 or not model.spec.action[keys[0]].discrete:
        raise BarError(f"the actions of {model.spec.name} are not one choice among several")
    able = np.flatnonzero((recording.step % every == 0) & (np.asarray(recording.covariates["is_last"][:]) == 0))
    if len(able) < scenes:
        raise BarError(f"{recording.path} has {len(able)} steps at multiples of {every}: fewer scenes than {scenes}")
    rows = np.sort(np.random.default_rng(seed).permutation(able)[:scenes])
    inventory = np.asarray(recording.covariates["inventory"][rows], np.int64)
    grid = np.array(list(itertools.product(levels, repeat=len(vitals))))  # (L^V, V)
    carry = _carry(model, recording, rows, seed) if history else model.initial(scenes)
    shape = (scenes, *[len(levels)] * len(vitals))
    value, p = _read(model, recording, bar, rows, carry, inventory, [dict(zip(vitals, one)) for one in grid], history)
    alone = [{control: level} for level in levels]
    control_value, control_p = _read(model, recording, bar, rows, carry, inventory, alone, history)
    weights = resample_groups(scenes, resamples, np.random.default_rng(seed + 1))
    value, p = value.reshape(shape), p.reshape(*shape, -1)
    profiles = {name: _profile(value, v + 1) for v, name in enumerate(vitals)} | {control: control_value}
    swings = {name: np.ptp(one, axis=1) for name, one in profiles.items()}
    bits = {name: _bits(np.moveaxis(p, v + 1, -2)) for v, name in enumerate(vitals)} | {control: _bits(control_p)}
    effects = {"value": swings, "bits": bits}
    mean = {what: {name: float(per.mean()) for name, per in one.items()} for what, one in effects.items()}
    interval = {what: {name: np.percentile(weights @ per / scenes, [2.5, 97.5]) for name, per in one.items()}
                for what, one in effects.items()}  # fmt: skip
    own = recording.provenance
    return StateProbeResult(
        vitals=tuple(vitals), levels=tuple(int(level) for level in levels), control=control, value=value, p=p,
        control_value=control_value, control_p=control_p, mean=mean, interval=interval,
        frames=np.asarray(recording.covariates["obs.image"][rows]), row=rows, episode=recording.episode[rows],
        inventory=inventory, actions=_names(p.shape[-1]),
        settings={"every": every, "history": history, "resamples": resamples, "seed": seed},
        provenance=own.again(
            checkpoint=str(model.path) if model.path else None, seeds={**own.seeds, "state_probe": seed},
            edits=tuple(edit.describe() for edit in model.edits),
            caveats=tuple(dict.fromkeys([*own.caveats, *model.caveats])),
        ),
    )  # fmt: skip


def _carry(model: Any, recording: Any, rows: np.ndarray, seed: int) -> Any:
    """What the agent remembers of each episode before the scene."""
    kept = []
    for row in rows:
        first = int(recording.episodes["start"][recording.episode[row]])
        carry = model.initial(1)
        for begin in range(first, int(row), 64):
            steps = np.arange(begin, min(begin + 64, int(row)))
            carry = model.unroll(read_steps(model.agent, recording, steps[None]), carry=carry, seed=seed).carry
        kept.append(carry)
    return mapped(lambda *parts: torch.cat(parts), *kept)


def _read(
    model: Any, recording: Any, bar: Bar, rows: np.ndarray, carry: Any, inventory: np.ndarray,
    cases: Sequence[dict[str, int]], history: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Value (scenes, cases) and probabilities (scenes, cases, A)."""
    count, key = len(rows), next(iter(model.spec.action))
    value, p = [], []
    for case in cases:
        shown = changed(inventory, {name: np.full(count, level) for name, level in case.items()})
        given = read_steps(model.agent, recording, rows[:, None],
                           lambda obs, at, shown=shown: {"image": bar.draw(obs["image"], shown)})  # fmt: skip
        obs = {name: given[name][:, 0] for name in model.spec.obs}
        first = given["is_first"][:, 0] if history else torch.ones(count, dtype=torch.bool, device=model.agent.device)
        _, after = model.act({**obs, "is_first": first}, carry)
        with torch.no_grad():
            told = model.agent.read_out(after)
        value.append(told["value"].float().cpu().numpy())
        p.append(torch.softmax(told[f"logits.{key}"].float(), -1).cpu().numpy())
    return np.stack(value, 1), np.stack(p, 1)


def _profile(value: np.ndarray, axis: int) -> np.ndarray:
    """(scenes, L): the mean value at each level of one vital, over all levels of the others."""
    others = tuple(i for i in range(1, value.ndim) if i != axis)
    return value.mean(others) if others else value


def _bits(p: np.ndarray) -> np.ndarray:
    """(scenes,) bits that the action tells of the level, all levels alike often: p (scenes, ..., L, A)."""
    mean = p.mean(-2, keepdims=True)
    told = (p * np.log2(np.maximum(p, 1e-12) / np.maximum(mean, 1e-12))).sum(-1).mean(-1)
    return np.maximum(told.reshape(len(p), -1).mean(1), 0)


def _names(count: int) -> tuple[str, ...]:
    from crafter import constants

    known = tuple(constants.actions)  # pyright: ignore[reportAttributeAccessIssue]
    return known if len(known) == count else tuple(map(str, range(count)))

