"""Self-tests of a world: is its spec true, is the truth apart, does everything follow from the seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.envs.collector import LockStep
from torchmem.envs.make import env_spec, make_config, make_env, world_class
from torchmem.envs.protocol import World
from torchmem.envs.seeds import SPLITS, episode_seed, narrow_seed
from torchmem.types import RESERVED, EnvSpec
from torchmem.verify.play import Factory, Row, copied, differences, play, random_actions
from torchmem.verify.report import Check, measured

COPIES = 3
SEEDS = 16  # that are tried for a difference
AGAIN = 48  # lock-steps that are played again and compared byte by byte


def world_checks(name: str, kwargs: Mapping[str, Any], factory: Factory, rows: list[Row], spec: EnvSpec) -> list[Check]:
    """All checks of the world that `factory` makes. rows: what random play showed (`play`), of `COPIES` copies."""
    steps, ends = len(rows), int(sum(row.data["is_last"].sum() for row in rows))
    seen = f"{COPIES} copies x {steps} steps of random play, {ends} episode ends"
    return [
        measured("spec: observations", f"keys, dtypes, shapes and ranges, {seen}", 0, lambda: wrong_rows(spec, rows)),
        measured("spec: made again", "the spec's JSON and kwargs against the spec", 0, lambda: made_again(spec, name)),
        measured("flags", f"is_first, is_last, is_terminal and reward against their timing, {seen}", 0,
                 lambda: wrong_flags(rows)),
        measured("truth apart", "keys of truth and of what agents get; shared memory", 0,
                 lambda: truth_leaks(spec, factory, rows)),
        measured("truth in sight", "observation entries that equal a truth entry at every step: meant to be seen?",
                 math.inf, lambda: in_sight(spec, rows)),
        measured("arrays kept", f"what {AGAIN} steps returned, after later steps; the same play with returned arrays "
                 "overwritten", 0, lambda: arrays_change(factory)),
        measured("seeds: same", f"two plays of one seed, byte by byte, {AGAIN} steps after other play", 0,
                 lambda: same_seed(factory)),
        seeds_differ(factory, world_class(name).draws(make_config(name, **kwargs)[1])),
        measured("seeds: history", "an episode after another one against the same seed in a new world, 8 steps", 0,
                 lambda: depends_on_history(name, kwargs)),
        measured("seeds: splits", "seeds that train, eval and record share, 64 copies x 64 episodes each", 0,
                 shared_seeds),
        measured("snapshot", f"a saved play continued in new worlds against the play itself, {AGAIN} steps", 0,
                 lambda: restored(factory)),
    ]  # fmt: skip


def wrong_rows(spec: EnvSpec, rows: list[Row]) -> tuple[float, str]:
    """Lock-steps on which an array is not what the spec says."""
    faults = [fault for fault in (row_fault(spec, row.data) for row in rows) if fault]
    return len(faults), faults[0] if faults else ""


def row_fault(spec: EnvSpec, data: Mapping[str, np.ndarray]) -> str:
    expected = {*spec.obs, *RESERVED}
    if set(data) != expected:
        return f"keys missing {sorted(expected - set(data))}, undeclared {sorted(set(data) - expected)}"
    n = len(data["is_first"])
    for key, space in spec.obs.items():
        value = data[key]
        if value.dtype != np.dtype(space.dtype) or value.shape != (n, *space.shape):
            return f"{key} is {value.dtype}{list(value.shape[1:])}, declared {space.dtype}{list(space.shape)}"
        if space.classes is not None and space.dtype != "bool":
            low = -1 if np.issubdtype(value.dtype, np.signedinteger) else 0  # -1: missing (models/inputs.py)
            if value.size and not (low <= value.min() and value.max() < space.classes):
                return f"{key} holds {value.min()}..{value.max()}, declared classes {space.classes}"
        elif value.dtype.kind == "f":
            present = value[value != -np.inf]  # -inf: missing
            if present.size and not ((space.low <= present) & (present <= space.high) & (present < np.inf)).all():
                return f"{key} holds {present.min()}..{present.max()}, declared {space.low}..{space.high}"
    for key in RESERVED:
        if data[key].shape != (n,) or data[key].dtype != (np.float32 if key == "reward" else bool):
            return f"{key} is {data[key].dtype}{list(data[key].shape)}"
    return "" if np.isfinite(data["reward"]).all() else "a reward is not finite"


def made_again(spec: EnvSpec, name: str) -> tuple[float, str]:
    """1 for each way of keeping the spec in which it does not come back."""
    faults = []
    if EnvSpec.from_json(json.loads(json.dumps(spec.to_json()))) != json_like(spec):
        faults.append("its JSON")
    if env_spec(name if ":" in name else spec.name, **spec.kwargs) != spec:
        faults.append("its name and kwargs")
    return len(faults), f"another spec comes of {' and of '.join(faults)}" if faults else ""


def json_like(spec: EnvSpec) -> EnvSpec:
    """Tuples among the kwargs are lists in JSON; that is no loss."""
    data = spec.to_json() | {"kwargs": json.loads(json.dumps(dict(spec.kwargs)))}
    return EnvSpec.from_json(data)


def wrong_flags(rows: list[Row]) -> tuple[float, str]:
    """(copy, step) pairs at which the flags break the timing of types.py."""
    faults: list[str] = []
    closed = np.ones(len(rows[0].data["is_first"]), bool)
    for step, row in enumerate(rows):
        first, last, terminal = (np.asarray(row.data[k], bool) for k in ("is_first", "is_last", "is_terminal"))
        found = {
            "is_first where no episode ended before": first & ~closed,
            "no is_first after is_last": ~first & closed,
            "is_terminal without is_last": terminal & ~last,
            "a reward at is_first": first & (row.data["reward"] != 0),
        }
        faults += [f"{text} (step {step}, copy {i})" for text, where in found.items() for i in np.flatnonzero(where)]
        closed = last
    return len(faults), faults[0] if faults else ""


def truth_leaks(spec: EnvSpec, factory: Factory, rows: list[Row]) -> tuple[float, str]:
    """Truth keys among an agent's keys, truth keys that are not the declared ones, and arrays that are both."""
    faults = []
    for step, row in enumerate(rows):
        shown = set(row.data) & {*spec.truth, *row.truth}
        if shown:
            faults.append(f"truth {sorted(shown)} is among what agents get (step {step})")
        if set(row.truth) != set(spec.truth):
            faults.append(f"truth has keys {sorted(row.truth)}, declared {sorted(spec.truth)} (step {step})")
    if len({str({k: (v.shape, v.dtype) for k, v in row.truth.items()}) for row in rows}) > 1:
        faults.append("shapes or dtypes of truth change from step to step")
    worlds = factory(COPIES, "train", 0)
    try:
        data, truth = worlds.step(None)
        pairs = [(a, b) for a in data for b in truth if np.shares_memory(data[a], truth[b])]
        faults += [f"{a} and truth {b} are one array" for a, b in pairs]
    finally:
        worlds_close(worlds)
    return len(faults), faults[0] if faults else ""


def in_sight(spec: EnvSpec, rows: list[Row]) -> tuple[float, str]:
    """Pairs of an observation entry and a truth entry that are equal throughout and take 3 values at least.

    A world may mean to show them (a compass), so this fails nothing. Images are left out.
    """
    truth = {k: series(rows, k, True) for k in spec.truth if np.asarray(rows[0].truth[k]).dtype.kind in "fiub"}
    found = []
    for key, space in spec.obs.items():
        if space.image:
            continue
        for entry, shown in enumerate(series(rows, key, False).T):
            if len(np.unique(shown)) < 3:
                continue
            for name, hidden in truth.items():
                hits = [i for i, h in enumerate(hidden.T) if np.allclose(shown, h, rtol=1e-5, atol=1e-6)]
                found += [f"{key}[{entry}] is {name}" + (f"[{i}]" if hidden.shape[1] > 1 else "") for i in hits]
    return len(found), ", ".join(found[:6])


def series(rows: list[Row], key: str, truth: bool) -> np.ndarray:
    """(copies * steps, entries) float64."""
    whole = np.stack([(row.truth if truth else row.data)[key] for row in rows])
    return whole.reshape(whole.shape[0] * whole.shape[1], -1).astype(np.float64)


def arrays_change(factory: Factory) -> tuple[float, str]:
    """Arrays that a later step changed, and lock-steps that differ once the caller has written into returned arrays."""
    plain, given, kept = played(factory, AGAIN, spoil=False)
    changed = [f"{key} of step {step}" for step, (a, b) in enumerate(zip(given, kept, strict=True))
               for key in a if a[key].tobytes() != b[key].tobytes()]  # fmt: skip
    spoilt, _, _ = played(factory, AGAIN, spoil=True)
    count, first = differences(plain, spoilt)
    if changed:
        return len(changed) + count, f"changed later: {changed[0]}"
    return count, f"after writing into returned arrays, {first}" if count else ""


def played(factory: Factory, steps: int, spoil: bool) -> tuple[list[Row], list[dict], list[dict]]:
    """A play; the returned arrays themselves and copies made at once. spoil: overwrite them after copying."""
    worlds, rng = factory(COPIES, "train", 0), np.random.default_rng(5)
    rows, given, kept = [], [], []
    try:
        for step in range(steps):
            action = random_actions(worlds.spec, worlds.n, rng) if step else None
            data, truth = worlds.step(None if action is None else copied(action))
            rows.append(Row(action, copied(data), copied(truth)))
            flat = {**data, **{f"truth {k}": v for k, v in truth.items()}}
            given.append(flat)
            kept.append(copied(flat))
            if spoil:
                for value in flat.values():
                    if value.flags.writeable:
                        value[...] = 1 - value if value.dtype.kind != "b" else ~value
    finally:
        worlds_close(worlds)
    return rows, given, kept


def same_seed(factory: Factory) -> tuple[float, str]:
    """Lock-steps that differ between two plays of one seed; other worlds play in between."""
    one = fresh(factory, AGAIN, seed=0)
    fresh(factory, 7, seed=1)
    return differences(one, fresh(factory, AGAIN, seed=0))


def depends_on_history(name: str, kwargs: Mapping[str, Any]) -> tuple[float, str]:
    """Steps of an episode that differ because another one was played before it."""
    used, new = make_env(name, **kwargs), make_env(name, **kwargs)
    try:
        episode(used, seed=101, actions=3, steps=10)
        return differences(episode(used, seed=7, actions=4, steps=8), episode(new, seed=7, actions=4, steps=8))
    finally:
        used.close()
        new.close()


def episode(world: World, seed: int, actions: int, steps: int) -> list[Row]:
    """The first steps of one episode."""
    rng, spec = np.random.default_rng(actions), world.env_spec
    obs, info = world.reset(seed=seed)
    rows = [Row(None, copied(obs), copied(info["truth"]))]
    for _ in range(steps):
        action = {key: value[0] for key, value in random_actions(spec, 1, rng).items()}
        obs, reward, terminated, truncated, info = world.step(action["action"] if set(action) == {"action"} else action)
        rows.append(Row(None, copied(obs) | {"reward": np.array(reward)}, copied(info["truth"])))
        if terminated or truncated:
            break
    return rows


def seeds_differ(factory: Factory, draws: bool) -> Check:
    """Whether other seeds open other episodes; for a world that says it draws nothing, whether they do not."""

    def equal() -> tuple[float, str]:
        plays = [fresh(factory, 8, seed=seed, copies=1) for seed in range(SEEDS)]
        same = sum(not differences(plays[0], other)[0] for other in plays[1:])
        if not draws:
            return SEEDS - 1 - same, "World.DRAWS is False"
        return same, "the seed is ignored (or nothing is drawn: say so with DRAWS = False)" * (same == SEEDS - 1)

    if not draws:
        return measured("seeds: different", f"of {SEEDS - 1} other seeds those that open another episode", 0, equal)
    return measured(
        "seeds: different", f"of {SEEDS - 1} other seeds those that open the first one's episode", SEEDS - 2, equal
    )


def shared_seeds() -> tuple[float, str]:
    """Episode seeds of two splits that meet, and 31-bit ones for simulators that take no more."""
    sets = [{episode_seed(s, 0, i, k) for i in range(64) for k in range(64)} for s in SPLITS]
    narrow = [{narrow_seed(seed) for seed in seeds} for seeds in sets]
    return sum(len(a & b) for group in (sets, narrow) for i, a in enumerate(group) for b in group[:i]), ""


def restored(factory: Factory) -> tuple[float, str]:
    """Lock-steps that differ after a restore. Copies that say they cannot continue are told, not counted."""
    worlds, other = factory(COPIES, "train", 3), factory(COPIES, "train", 3)
    try:
        play(worlds, 12, seed=1)
        whole = holder(other).load_state_dict(holder(worlds).state_dict())
        one, two = (play(w, AGAIN, seed=2, first=False) for w in (worlds, other))
    finally:
        worlds_close(worlds)
        worlds_close(other)
    rows = [i for i, ok in enumerate(whole) if ok]
    lost = f"{COPIES - len(rows)} of {COPIES} copies cannot be restored and open their next episode"
    pick = [[Row(None, *({k: v[rows] for k, v in part.items()} for part in (r.data, r.truth))) for r in p]
            for p in (one, two)]  # fmt: skip
    count, first = differences(*pick)
    return count, first or (lost if len(rows) < COPIES else "")


def fresh(factory: Factory, steps: int, seed: int, copies: int = COPIES, ends: int | None = None) -> list[Row]:
    """A play of new worlds; see `play`."""
    worlds = factory(copies, "train", seed)
    try:
        return play(worlds, steps, seed=9, ends=ends)
    finally:
        worlds_close(worlds)


def holder(worlds: Any) -> Any:
    """What holds the state: the worlds, or those that a view shows."""
    return worlds if hasattr(worlds, "state_dict") else worlds.worlds


def worlds_close(worlds: LockStep) -> None:
    holder(worlds).close()
