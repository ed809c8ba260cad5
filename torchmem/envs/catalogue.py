"""Every world that can be made here: what it shows, what it hides, how well chance plays it, how fast it steps."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from torchmem.envs.make import CONFIGS, IDS, env_spec, make_env, nearest
from torchmem.types import EnvSpec, Space


@dataclasses.dataclass(frozen=True)
class Entry:
    """One id.

    spec: None where even that needs what is missing. missing: why the world cannot be made here; empty if it can.
    steps_per_s: agent steps of one copy in this process under random actions, resets included; None: not measured.
    """

    id: str
    name: str  # of its configuration group, env=<name>
    kwargs: Mapping[str, Any]  # that differ from the defaults
    spec: EnvSpec | None
    missing: str = ""
    steps_per_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values; infinite bounds of a space are left out."""
        row: dict[str, Any] = {"id": self.id, "env": self.name, "kwargs": dict(self.kwargs)}
        if self.spec is not None:
            for group in ("obs", "action"):
                row[group] = {key: space_json(space) for key, space in getattr(self.spec, group).items()}
            levels = dict(self.spec.levels)
            row |= {"truth": dict(self.spec.truth), "score": self.spec.score, "chance": levels.pop("chance", None),
                    "levels": levels, "control_hz": self.spec.control_hz, "action_repeat": self.spec.action_repeat}
        if self.missing:
            row["missing"] = self.missing
        if self.steps_per_s is not None:
            row["steps_per_s"] = self.steps_per_s
        return row


def catalogue(only: str | None = None, measure_s: float | None = None) -> Iterator[list[Entry]]:
    """For each name in turn a row for every id of it, or for the name itself where it has none.

    only: a name or an id. measure_s: step each world for about so many seconds; without, one world of each name is
    made, to see whether its simulator is there. Raises ValueError, at once, where nothing is called `only`.
    """
    rows = [(name, id_, preset) for id_, (name, preset) in IDS.items()]
    rows += [(name, name, {}) for name in CONFIGS if name not in {row[0] for row in rows}]
    blocks = {name: [row for row in rows if row[0] == name and only in (None, *row[:2])] for name in CONFIGS}
    if not any(blocks.values()):
        raise ValueError(f"unknown env {only!r}{nearest(str(only), [*CONFIGS, *IDS])}; valid: {', '.join(CONFIGS)}")
    return (block(rows, measure_s) for rows in blocks.values() if rows)


def block(rows: list[tuple[str, str, dict[str, Any]]], measure_s: float | None) -> list[Entry]:
    """The entries of one name."""
    fault, entries = fault_of(rows[0][1]), []
    for name, id_, preset in rows:
        spec, wrong, rate = None, fault, None
        try:
            spec = env_spec(id_)
            if measure_s is not None and not fault:
                rate = steps_per_second(id_, measure_s)
        except Exception as error:
            wrong = wrong or told(error)
        entries.append(Entry(id_, name, preset, spec, wrong, rate))
    return entries


def fault_of(id_: str) -> str:
    """Why a world cannot be made on this machine; empty if it can. Simulators raise what they like."""
    try:
        make_env(id_).close()
    except Exception as error:
        return told(error)
    return ""


def told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def steps_per_second(id_: str, seconds: float) -> float:
    """Agent steps per second of wall time, observations, truth and resets included; the first episode is warm-up."""
    world, rng = make_env(id_), np.random.default_rng(0)
    try:
        world.action_space.seed(0)
        actions = [world.action_space.sample() for _ in range(256)]
        world.reset(seed=0)
        for action in actions[:8]:
            if any(world.step(action)[2:4]):
                break
        world.reset(seed=1)
        steps, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < seconds or not steps:
            _, _, terminated, truncated, _ = world.step(actions[rng.integers(len(actions))])
            steps += 1
            if terminated or truncated:
                world.reset(seed=steps + 1)
    finally:
        world.close()
    return steps / taken


def text(block: list[Entry]) -> str:
    """The entries of one name for people: what its ids share, then a line for each id."""
    width = max(len(entry.id) for entry in block)
    lines = [f"env={block[0].name}: {(CONFIGS[block[0].name].__doc__ or '').splitlines()[0]}"]
    truths = [{} if entry.spec is None else dict(entry.spec.truth) for entry in block]
    shared = all(truth == truths[0] for truth in truths)
    if shared and truths[0]:
        lines.append(truth_text(truths[0], 2))
    for entry, truth in zip(block, truths, strict=True):
        lines.append(f"  {entry.id:<{width}}  {entry_text(entry)}")
        if truth and not shared:
            lines.append(truth_text(truth, width + 4))
    return "\n".join(lines)


def entry_text(entry: Entry) -> str:
    parts = []
    if entry.spec is not None:
        spec = entry.spec
        parts += [", ".join(space_text(key, space) for key, space in spec.obs.items())]
        parts += [", ".join(space_text(key, space) for key, space in spec.action.items())]
        levels = ", ".join(f"{name} {value:.4g}" for name, value in spec.levels.items())
        parts += [f"{spec.score}: {levels or 'no level known'}"]
    if entry.steps_per_s is not None:
        parts.append(f"{entry.steps_per_s:,.0f} steps/s")
    if entry.missing:
        parts.append(f"MISSING here: {entry.missing}")
    return " | ".join(parts)


def truth_text(truth: Mapping[str, str], indent: int) -> str:
    line = "truth: " + ", ".join(f"{key} ({unit})" for key, unit in truth.items())
    return textwrap.fill(line, 120, initial_indent=" " * indent, subsequent_indent=" " * (indent + 7))


def space_text(key: str, space: Space) -> str:
    """"image uint8 64x64x3", "action 5 choices", "action float32 2 in [-1, 1]"."""
    shape = "x".join(map(str, space.shape))
    if space.discrete:
        count = f"{space.classes or 2} choices"
        return f"{key} {count}" if not shape else f"{key} {shape} of {count}"
    bounded = not space.image and np.isfinite([space.low, space.high]).all()
    bounds = f" in [{space.low:g}, {space.high:g}]" if bounded else ""
    return " ".join(part for part in (key, space.dtype, shape) if part) + bounds


def space_json(space: Space) -> dict[str, Any]:
    row: dict[str, Any] = {"shape": list(space.shape), "dtype": space.dtype}
    if space.classes is not None:
        row["classes"] = space.classes
    return row | {key: getattr(space, key) for key in ("low", "high") if np.isfinite(getattr(space, key))}
