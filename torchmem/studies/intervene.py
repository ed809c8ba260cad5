"""measure_interventions: does an edit of a memory's directions change behaviour as predicted, simulated and for real?

Matched pairs: the same starts, worlds and noise, with and without. A dose-response, random directions as the control,
intervals over starts. The prediction is told before anything is played (spec simulator.md section 6, R12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.find_directions import DirectionsResult
from torchmem.analysis.nulls import p_value, resample_groups
from torchmem.models.simulator.files import load_simulator, weights_of
from torchmem.models.simulator.protocol import Start
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.provenance import Provenance
from torchmem.studies.direction_edits import Changes, in_simulator, make_edits, random_rows
from torchmem.studies.fidelity import require_fidelity
from torchmem.studies.intervene_result import InterveneResult
from torchmem.studies.simulate import Starts
from torchmem.surgery.edits import SiteEdit
from torchmem.surgery.model import Model

Play = dict[str, np.ndarray]  # reward, done, keep (B, T) and the actions (B, T, ...); keep: up to the first end
Outcome = Callable[[Play], np.ndarray]  # -> (B,)
Player = Callable[[Sequence[SiteEdit]], Play]
DRAWS = 1000


def measure_interventions(
    simulator: str | Path,
    recording: str | Path | None,
    directions: DirectionsResult,
    changes: Changes,
    *,
    places: Sequence[str] = ("simulator", "world"),
    doses: Sequence[float] = (0.5, 1.0),
    controls: int = 10,
    predicted: Mapping[str, str] | None = None,
    outcomes: Mapping[str, Outcome] | None = None,
    horizon: int = 32,
    samples: int = 64,
    init: str = "real",
    guess: bool = False,
    batch: int = 32,
    agent: Any = None,
    seed: int = 0,
    device: str = "cpu",
    allow: bool = False,
) -> InterveneResult:
    """Play `samples` pairs of `horizon` steps per place, dose and control.

    simulator: starts as for `simulate`, the modes of world and policy. world: the agent's own, from the start of
    episodes that recording seeds make, policy modes too. doses: shares of the change, the last one is compared with
    `controls` draws of random directions. predicted: outcome -> "+" or "-", the sign of the change at the last dose.
    outcomes: more of them; default return, ended, and the share (or mean) of each action.

    Raises FidelityError, ValueError for directions that do not exist, an outcome that is predicted but not measured.
    """
    world, loop, home = load_simulator(simulator, agent, device)
    report = require_fidelity(simulator, allow)
    players: dict[str, Player] = {}
    if "simulator" in places:
        if init != "random" and recording is None:
            raise ValueError(f"init={init} starts from real steps: give a recording")
        starts = Starts(world, loop, init, recording, samples, guess, seed, device)
        drawn = rollout_noise(world, loop, samples, horizon, None, world=False, actions=False)
        drawn.agent = None
        start, _, _ = starts.of(range(samples), drawn)
        players["simulator"] = simulated(world, loop, start, horizon, batch)
    if "world" in places:
        players["world"] = real(Model(loop.agent), horizon, samples, seed)
    config = {"changes": changes.describe(), "doses": list(doses), "controls": controls, "horizon": horizon,
              "samples": samples, "init": init, "seed": seed, "recording": str(recording)}  # fmt: skip
    caveats = () if report is not None and report.passed else ("of a simulator that did not pass its gate",)
    return compare_plays(
        players, directions, changes, outcomes or outcomes_of(loop.spaces), doses=doses, controls=controls,
        predicted=predicted or {}, seed=seed, simulator=str(simulator),
        provenance=Provenance.here(checkpoint=str(home), weights=weights_of(home), config=config,
                                   seeds={"intervene": seed}, caveats=caveats),
    )  # fmt: skip


def compare_plays(
    players: Mapping[str, Player], directions: DirectionsResult, changes: Changes, outcomes: Mapping[str, Outcome], *,
    doses: Sequence[float], controls: int, predicted: Mapping[str, str], seed: int, simulator: str,
    provenance: Provenance,
) -> InterveneResult:  # fmt: skip
    """Edited against untouched, in each place, for each dose and random control."""
    wrong = [name for name, sign in predicted.items() if name not in outcomes or sign not in ("+", "-")]
    if wrong:
        raise ValueError(f"predicted {wrong[0]!r}: give + or - for one of {', '.join(outcomes)}")
    if not changes.numbers:
        raise ValueError("nothing is to be changed: give swap, drop or clamp")
    if not players or not doses:
        raise ValueError("give at least one place and one dose")
    rng = np.random.default_rng(seed)
    rows = [random_rows(directions, changes, rng) for _ in range(controls)]
    effect, low, high, control, p, before, flips, flips_control = ({} for _ in range(8))
    for place, play in players.items():
        plain = play([])
        base = np.stack([outcome(plain) for outcome in outcomes.values()])  # (O, B)
        before[place] = base.mean(1)
        weight = resample_groups(base.shape[1], DRAWS, rng) / base.shape[1]
        found, turned = [], []
        for dose in doses:
            other = play(make_edits(directions, changes, dose))
            found.append(np.stack([outcome(other) for outcome in outcomes.values()]) - base)
            turned.append(_flipped(plain, other))
        change = np.stack(found)  # (doses, O, B)
        effect[place], flips[place] = change.mean(2), np.array(turned)
        again = change @ weight.T
        low[place], high[place] = np.quantile(again, [0.025, 0.975], axis=2)
        others = [play(make_edits(directions, changes, doses[-1], turn)) for turn in rows]
        measured = [np.stack([outcome(one) for outcome in outcomes.values()]) - base for one in others]
        control[place] = np.array([one.mean(1) for one in measured]).reshape(len(rows), len(outcomes))
        flips_control[place] = np.array([_flipped(plain, one) for one in others])
        p[place] = np.full(len(outcomes), np.nan)
        if rows:
            p[place] = p_value(np.abs(effect[place][-1]), np.abs(control[place]))
    return InterveneResult(
        simulator=simulator, changes=changes.describe(), outcomes=tuple(outcomes), doses=tuple(doses), before=before,
        effect=effect, low=low, high=high, control=control, p=p, flips=flips, flips_control=flips_control,
        predicted=dict(predicted), provenance=provenance,
    )  # fmt: skip


def simulated(world: Any, loop: Any, start: Start, horizon: int, batch: int = 32) -> Player:
    """Plays from the same starts in a simulator, modes throughout."""
    rows = len(start.is_first)

    def part(value: Any, chosen: slice) -> Any:
        if isinstance(value, Tensor):
            return value[chosen]
        parts = [part(v, chosen) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)

    @torch.no_grad()
    def play(edits: Sequence[SiteEdit]) -> Play:
        pieces = []
        for begin in range(0, rows, batch):
            some = part(start, slice(begin, begin + batch))
            edit = in_simulator(edits, loop.agent) if edits else None
            found = rollout(world, loop, some, horizon, edit=edit, early=True)
            done = found.done > 0.5
            pieces.append(_told(found.reward, done, found.action))
        return {key: np.concatenate([one[key] for one in pieces]) for key in pieces[0]}

    return play


def real(model: Model, horizon: int, rows: int, seed: int, make: Callable[[], Any] | None = None) -> Player:
    """Plays in the agent's world, the same episodes each time. make: worlds that step as VectorEnv does."""

    @torch.no_grad()
    def play(edits: Sequence[SiteEdit]) -> Play:
        with model.edited(edits), model.trace.play(
            horizon, envs=rows, env=None if make is None else make(), seed=seed, noise="mode", raw=False
        ) as tr:
            pass
        return _told(tr.out.reward, tr.out.is_last, tr.out.action)

    return play


def _told(reward: Tensor, done: Tensor, action: Mapping[str, Tensor]) -> Play:
    ended = done.cpu().numpy()
    keep = np.concatenate([np.zeros_like(ended[:, :1]), ended[:, :-1]], 1).cumsum(1) == 0
    parts = {key: value.cpu().numpy() for key, value in action.items()}
    return {"reward": reward.cpu().numpy(), "done": ended, "keep": keep, **parts}


def outcomes_of(spaces: Mapping[str, Any]) -> dict[str, Outcome]:
    """return, ended, and per action key the share of each class, or the mean of each number."""
    found: dict[str, Outcome] = {
        "return": lambda play: (play["reward"] * play["keep"]).sum(1),
        "ended": lambda play: (play["done"] & play["keep"]).any(1).astype(float),
    }

    def mean(key: str, of: Callable[[np.ndarray], np.ndarray]) -> Outcome:
        return lambda play: (of(play[key]) * play["keep"]).sum(1) / play["keep"].sum(1)

    for key, space in spaces.items():
        if space.discrete and not space.shape:
            for a in range(space.classes or 2):
                found[f"{key} {a}"] = mean(key, lambda v, a=a: v == a)
        elif not space.discrete:
            for i in range(space.one_hot_size):
                found[f"{key} {i}"] = mean(key, lambda v, i=i: v.reshape(*v.shape[:2], -1)[:, :, i])
    return found


def _flipped(plain: Play, other: Play) -> float:
    """Share of pairs whose usual behaviour is another: the most frequent class, or the sign of the mean."""
    keys = [key for key in plain if key not in ("reward", "done", "keep")]
    changed = np.zeros(len(plain["keep"]), bool)
    for key in keys:
        for row in range(len(changed)):
            a, b = (one[key][row][one["keep"][row]] for one in (plain, other))
            if a.dtype.kind in "iu" and a.ndim == 1:
                changed[row] |= np.bincount(a).argmax() != np.bincount(b).argmax()
            else:
                changed[row] |= bool((np.sign(a.mean(0)) != np.sign(b.mean(0))).any())
    return float(changed.mean())
