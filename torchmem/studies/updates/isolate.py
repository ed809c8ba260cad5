"""isolate_update: train on with one thing changed, and ask what the difference of the weights does.

From the same weights, optimiser state and seeds, one branch trains with the change and a null branch without. The
change's update, the null's (and that of a null with other seeds) and noise as long as the change's in every tensor are
then added to and taken away from the weights before, at several scales, and tested on paired episodes. What was taken
away is salvaged: trained on as before the change, with the optimiser state of after the change and with a fresh one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.result import Provenance
from torchmem.studies.updates.branch import State, Words, configured, merged, train
from torchmem.studies.updates.episodes import Table, play_episodes
from torchmem.studies.updates.measures import Measure, default_measures
from torchmem.studies.updates.shelf import Shelf
from torchmem.studies.updates.update_result import UpdateResult
from torchmem.surgery.weight_delta import WeightDelta

SCALES = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
SEEDS = 4000  # of agents; branches, salvage and reseeded branches take the ranges behind it
SHARED = ("landed", "success", "success, rule unchanged", "success, rule inverted", "length")


@dataclasses.dataclass(frozen=True)
class Isolated:
    """The result, and the updates themselves: ("change", "null", "noise", "difference") -> WeightDelta."""

    result: UpdateResult
    deltas: dict[str, WeightDelta]
    states: dict[str, State]  # "pre", "post", "post null": for reading out activations


def isolate_update(
    start: State,
    words: Words,
    change: Words,
    steps: int,
    *,
    nulls: Sequence[str] = ("null", "reseeded", "noise"),
    after: Words = (),
    test: Words = (),
    measures: Sequence[Measure] | None = None,
    term: str | None = None,
    scales: Sequence[float] = SCALES,
    salvage: int = 0,
    modules: bool = True,
    episodes: int = 64,
    seed: int = 0,
    greedy: bool = True,
    folder: str | Path | None = None,
    others: dict[str, State] | None = None,
) -> Isolated:
    """See the module. For any agent that the configuration can train.

    start: from `train`, `begin` or `State.of_run`. words: the configuration that it was trained with. change: words
    that differ in the change branch. steps: agent steps of each branch. nulls: of null, reseeded, noise. after: words
    of all branches and of salvage (such as another learning rate). test: words of the world that all are tested in,
    beside `words`. measures, term: what is counted per episode, and which of it the change is about (default: see
    `default_measures`; the return). scales: of each update, 1 is after, -1 taken away. salvage: agent steps of
    retraining, 0 for none. modules: take the change away in each module alone too. episodes: a multiple of 16. folder:
    keep all parts there and go on from what it holds. others: further states to test, by condition ("init").

    Updates are of parameters alone: running scales (of observations, rewards, returns) stay those of before, except
    under the conditions "post" and "post null", which are the branches' own agents.
    Raises ConfigError and ValueError for what does not fit.
    """
    if unknown := set(nulls) - {"null", "reseeded", "noise"}:
        raise ValueError(f"nulls are null, reseeded and noise; got {', '.join(sorted(unknown))}")
    shelf = Shelf(None if folder is None else Path(folder))
    branch_words, changed = merged(words, after), merged(words, after, change)
    world = configured(merged(words, test), 1, 0)
    chosen = tuple(measures) if measures is not None else default_measures(world.env_name)
    term = term or chosen[0].name
    if term not in {m.name for m in chosen}:
        raise ValueError(f"term {term!r} is none of the measures {', '.join(m.name for m in chosen)}")

    def tested(name: str, agent: Any) -> Table:
        return shelf.table(name, lambda: play_episodes(
            agent(), world.env_name, world.env_kwargs, chosen, episodes, seed, greedy=greedy))  # fmt: skip

    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be in 0..{SEEDS - 1}, got {seed}")
    branch_seed, later = seed + SEEDS, seed + 2 * SEEDS
    post = shelf.state("post", lambda: train(changed, start, steps, branch_seed))
    states = {"pre": start, "post": post}
    deltas = {"change": WeightDelta.between(start.agent, post.agent)}
    if "null" in nulls:
        null = states["post null"] = shelf.state("post-null", lambda: train(branch_words, start, steps, branch_seed))
        deltas["null"] = WeightDelta.between(start.agent, null.agent)
        deltas["difference"] = deltas["change"] - deltas["null"]
    if "reseeded" in nulls:
        other = shelf.state("post-reseeded", lambda: train(branch_words, start, steps, branch_seed + 2 * SEEDS))
        states["post reseeded"] = other
        deltas["reseeded"] = WeightDelta.between(start.agent, other.agent)
    if "noise" in nulls:
        deltas["noise"] = deltas["change"].noise_like(seed)

    before = tested("pre", lambda: start.agent)
    tables = {name: tested(name, lambda s=s: s.agent) for name, s in {**(others or {}), **states}.items()}
    sweep = {
        arm: _swept(arm, delta, start, scales, before, tested) for arm, delta in deltas.items() if arm != "reseeded"
    }
    for arm, delta in deltas.items():
        suffix = "" if arm == "change" else f" {arm}"
        tables[f"sub{suffix}"] = tested(f"{arm} x -1", lambda d=delta: start.edited(-d).agent)
    if "null" in nulls:
        scaled = as_long(deltas["null"], deltas["change"])
        tables["sub null scaled"] = tested("sub null scaled", lambda: start.edited(-scaled).agent)
    if modules:
        for name in dict.fromkeys(n.split(".")[0] for n in deltas["change"].names):
            part = deltas["change"].restrict(f"{name}.*")
            tables[f"only {name}"] = tested(f"only {name}", lambda d=part: start.edited(-d).agent)
    if salvage:
        for arm in ("change", *(n for n in nulls if n != "reseeded")):
            owner = {"change": post, "null": states.get("post null")}.get(arm)
            for kind in ("kept", "fresh") if owner is not None else ("fresh",):
                name = " ".join(["salvage", *([] if arm == "change" else [arm]), kind])
                learner = owner.learner if owner is not None and kind == "kept" else None
                taken = State(start.edited(-deltas[arm]).agent, learner)
                state = shelf.state(name.replace(" ", "-"), lambda s=taken: train(branch_words, s, salvage, later))
                tables[name] = tested(name, lambda s=state: s.agent)

    pairs = [("change", "null"), ("change", "reseeded"), ("null", "reseeded"), ("change", "difference")]
    pairs = [(a, b) for a, b in pairs if a in deltas and b in deltas]
    shown = dict.fromkeys(["return", term, *(m for m in SHARED if m in tables["pre"])])
    order = ["init", "pre", "post", "sub"]
    result = UpdateResult(
        world=world.env_name, base=tuple(words), change=tuple(change), test=tuple(test), term=term,
        shown=tuple(name for name in shown if name in tables["pre"]), seeds=(seed,),
        tables={k: _one(tables[k]) for k in dict.fromkeys([*(n for n in order if n in tables), *tables])},
        scales=_array(scales), sweep=sweep,
        norms={arm: _array([d.norm()]) for arm, d in deltas.items()},
        cosines={f"{a}, {b}": _array([deltas[a].cosine(deltas[b])]) for a, b in pairs},
        steps={"branch": steps, "salvage": salvage},
        provenance=Provenance.here(
            config={"words": list(words), "after": list(after), "change": list(change), "test": list(test)},
            seeds={"branches": branch_seed, "salvage": later, "test": seed, "noise": seed},
        ),
    )  # fmt: skip
    return Isolated(result, deltas, states)


def as_long(delta: WeightDelta, model: WeightDelta) -> WeightDelta:
    """`delta` with the length of `model` in every tensor; a tensor that does not change stays so."""
    lengths, wanted = delta.norms(), model.norms()
    values = {n: delta.value(n) * (wanted[n] / lengths[n] if lengths[n] else 0.0) for n in delta.names}
    return WeightDelta({n: v.to(delta.deltas[n].dtype) for n, v in values.items()})


def _swept(
    arm: str, delta: WeightDelta, start: State, scales: Sequence[float], before: Table, tested: Any
) -> dict[str, Any]:
    """measure -> (1, A, E)."""
    found = [
        before if scale == 0 else tested(f"{arm} x {scale:g}", lambda a=scale: start.edited(delta * a).agent)
        for scale in scales
    ]
    return {m: _array([[table[m] for table in found]]) for m in before}


def _one(table: Table) -> Table:
    return {name: values[None] for name, values in table.items()}


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, np.float64)
