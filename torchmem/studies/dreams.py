"""Dreams of an agent from recorded steps: observe, then imagine, and keep what the sites held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from torchmem.analysis.decode_dreams import DreamBatch
from torchmem.studies.crafter_bar import SCHEMES
from torchmem.studies.dream_seeds import NULLS
from torchmem.studies.dream_source import CONDITIONS, OTHER, Plan, Source
from torchmem.studies.dream_tracks import DreamError, watching

__all__ = ["DreamError", "dream_batches", "dreamable", "make_dreams"]


def make_dreams(model: Any, recording: Any, **given: Any) -> DreamBatch:
    """All dreams as one batch. Arguments as for `dream_batches`."""
    return DreamBatch.join(list(dream_batches(model, recording, **given)))


def dream_batches(
    model: Any,
    recording: Any,
    *,
    sites: str | Sequence[str] = "memory",
    target: str = "pos",
    warmup: int | None = None,
    horizon: int = 15,
    actions: Literal["policy", "replayed"] = "policy",
    starts: int = 256,
    stride: int = 1,
    copies: int = 1,
    conditions: Sequence[str] = ("A",),
    null: str = "shuffle",
    vitals: str = "uniform",
    vitals_from: Literal["start", "warmup"] = "start",
    modes: bool = False,
    seed: int = 0,
    rows: int = 512,
) -> Iterator[DreamBatch]:
    """Dreams of `model` (torchmem.load) from steps of `recording`, in pieces of about `rows` rows.

    The agent observes an episode up to a random step, from its beginning or the last `warmup` steps from a blank
    memory, and imagines `horizon` steps from there. actions: of its policy (sampled), or "replayed": those recorded.
    From the step where it begins on a dream sees nothing: only actions, if they are replayed.

    sites: that the states are kept of; they must run while imagining. target: position (x, y) of the real steps.
    starts: at most so many, of every `stride`-th step. copies: dreams per start, with other noise. conditions: how they
    begin (`dream_seeds`: A B C D E A'), and "other actions": as A, replaying those of another episode. null: what noise
    stands for memory in C and D. vitals: uniform or one_low, shown in A' at the start, or all along
    (vitals_from="warmup"). modes: nothing is drawn, latents and actions are the likeliest. The condition "awake" is
    always there: states observed along the real future. Edits on the model hold in its dreams too (A only).
    Raises DreamError.
    """
    agent = model.agent
    if not hasattr(agent, "imagine"):
        raise DreamError(f"a {agent.config.name} agent has no world model, so it cannot dream: dreamer, r2i and "
                         f"gru_dreamer agents can")  # fmt: skip
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    plan = Plan(names, target, warmup, horizon, actions, copies, tuple(conditions), null, vitals,
                vitals_from, modes, seed)  # fmt: skip
    _check(plan, model, recording)
    source = Source(model, recording, plan, starts, stride)  # now, so that wrong arguments are told at once
    per_piece = max(1, rows // (len(plan.dreams) + 1))
    parts = np.array_split(np.arange(len(source.begun.row)), -(-len(source.begun.row) // per_piece))
    return (source.piece(part, number) for number, part in enumerate(parts))


def _check(plan: Plan, model: Any, recording: Any) -> None:
    choices = (("actions", plan.actions, ("policy", "replayed")), ("null", plan.null, NULLS),
               ("vitals", plan.vitals, SCHEMES),
               ("vitals_from", plan.vitals_from, ("start", "warmup")))  # fmt: skip
    for name, value, known in choices:
        if value not in known:
            raise DreamError(f"{name}={value!r}: {' or '.join(known)}")
    unknown = [name for name in plan.conditions if name not in CONDITIONS]
    if unknown or not plan.conditions or len(set(plan.conditions)) < len(plan.conditions):
        raise DreamError(f"conditions={list(plan.conditions)}: each once, of {', '.join(CONDITIONS)}")
    if plan.copies < 1:
        raise DreamError(f"copies={plan.copies}: at least 1")
    if OTHER in plan.conditions and plan.actions != "replayed":
        raise DreamError(f"{OTHER!r} replays the actions of other episodes: give actions='replayed'")
    if model.edits and set(plan.conditions) - {"A", OTHER}:
        raise DreamError("while edits hold, dreams begin as A only: noise and pictures pass the edits by")
    column = recording.covariates[plan.target]
    if column.shape[1:] != (2,):
        raise DreamError(f"{plan.target} has {column.shape[1:]} per step; a position has (2,)")
    missing = [name for name in plan.sites if name not in dreamable(model, plan.sites)]
    if missing:
        raise DreamError(f"site {missing[0]!r} does not run while dreaming (an encoder sees nothing then): choose "
                         f"memory, dynamics.deter, dynamics.stoch or a layer of actor")  # fmt: skip


def dreamable(model: Any, names: Sequence[str]) -> list[str]:
    """Of these sites those that the agent has and that run once per step of a dream. Raises DreamError."""
    if not hasattr(model.agent, "imagine"):
        raise DreamError(f"a {model.agent.config.name} agent has no world model, so it cannot dream")
    here = [name for name in names if name in model.sites]
    with watching(model, here) as calls:
        model.imagine(model.initial(1), 2, seed=0)
    return [name for name in here if len(calls[name]) in (2, 3)]


