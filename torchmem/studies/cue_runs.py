"""Episodes of the batched cue worlds, played once and kept with everything needed to go on from any step of them.

A base run is the agent's own greedy play. Its source run is the same episode with another cue and the base's actions
forced upon it: the same poses at every step, so that both differ in nothing but what the cue left behind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.envs.tensor_tables import RUNNING, SUCCESS
from torchmem.envs.tensor_world import STATE, TensorWorld
from torchmem.models.noise import Noise
from torchmem.surgery.items import TraceError


class Cues:
    """The kinds of cue of a batched world, and which end is right under each of them."""

    def __init__(self, spec: Any) -> None:
        missing = {"cue_type", "outcome", "cue_visible", "choice_visible"} - set(spec.truth)
        if missing:
            raise TraceError(f"{spec.name} has no cue and choice: its truth is {sorted(spec.truth)}")
        world = TensorWorld(spec.name, spec.kwargs, 1)
        tables = world.tables
        self.kinds: tuple[str, ...] = tuple(sorted({layout.cue for layout in tables.layouts}))  # type: ignore[attr-defined]
        self.marks = [f"{name}_visible" for name in tables.mark_names if name != "choice"]  # what may tell the cue
        index = {layout: k for k, layout in enumerate(tables.layouts)}
        ends = []
        for kind in self.kinds:
            other = torch.tensor([index[layout.changed({"cue": kind})] for layout in tables.layouts])
            layout = other[torch.as_tensor(tables.layout)]
            x, y, heading = torch.as_tensor(tables.poses).T
            state = torch.as_tensor(tables.ids)[layout, x, y, heading]
            ends.append(torch.where(state >= 0, torch.as_tensor(tables.end)[state], RUNNING))
        self.ends = torch.stack(ends, 1)  # (N, kinds): what the pose of a state is worth under each cue

    def balanced(self, n: int) -> list[int]:
        """n numbers of kinds, in turn."""
        return [i % len(self.kinds) for i in range(n)]

    def right_under(self, state: Tensor, kind: Tensor) -> Tensor:
        """Whether a state (n,) would be a success if the cue were of this kind (n,): bool (n,)."""
        return self.ends[state.cpu(), kind.cpu()] == SUCCESS


@dataclasses.dataclass(frozen=True)
class Runs:
    """Rows of whole episodes, (n, T, ...); what comes after `last` belongs to later ones and counts for nothing.

    carries[t] and worlds[t]: the agent's carry before it sees step t, and where the world stands at t.
    """

    data: dict[str, Tensor]  # observations, reward and flags
    truth: dict[str, Tensor]
    actions: dict[str, Tensor]
    carries: list[Any]
    worlds: list[dict[str, Any]]
    kinds: Tensor  # (n,) the cue
    kwargs: Mapping[str, Any]  # of the worlds
    last: Tensor  # (n,) the step that ends the episode; T where none does

    @property
    def n(self) -> int:
        return len(self.last)

    @property
    def steps(self) -> int:
        return self.data["is_first"].shape[1]

    @property
    def within(self) -> Tensor:
        """(n, T) bool: steps of the episode."""
        return torch.arange(self.steps) <= self.last[:, None]

    def at_end(self, values: Tensor) -> Tensor:
        """(n,): values (n, T) where the episode ends, or at the last step."""
        return values.gather(1, self.last.clamp(max=self.steps - 1)[:, None]).squeeze(1)

    @property
    def outcome(self) -> Tensor:
        """(n,) truth `outcome` at the end: RUNNING where it has not ended."""
        return self.at_end(self.truth["outcome"].long())

    def sequence(self, agent: Any) -> dict[str, Tensor]:
        """What `unroll` takes: observations, actions, is_first."""
        return {**{k: self.data[k] for k in agent.spec.obs}, **self.actions, "is_first": self.data["is_first"]}


@torch.no_grad()
def play_runs(
    model: Any, cues: Cues, kinds: Sequence[int], *, steps: int, seed: int, forced: Mapping[str, Tensor] | None = None,
    options: Mapping[str, Any] | None = None, kwargs: Mapping[str, Any] | None = None,
) -> Runs:
    """Play one episode in each of len(kinds) worlds, greedily, or with the actions of `forced` (n, T).

    kinds: the cue of each row, as an index of `cues.kinds`. What else an episode is follows from `seed` and the row
    alone, so equal seeds with other kinds are counterfactual pairs. steps: at most; ends early once all have ended.
    options, kwargs: further reset options, and other arguments of the world.
    """
    agent, n = model.agent, len(kinds)
    world = TensorWorld(model.spec.name, {**model.spec.kwargs, **(kwargs or {})}, n, split="record", seed=seed)
    carry, ended = agent.initial(n), torch.zeros(n, dtype=torch.bool)
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []
    carries, worlds = [], []
    data, truth = world.reset({**(options or {}), "cue": [cues.kinds[k] for k in kinds]})
    for t in range(steps):
        carries.append(carry)
        worlds.append({name: getattr(world, f"_{name}") for name in STATE})
        told = {k: v.to(agent.device) for k, v in data.items()}
        if forced is None:
            action, carry, _ = agent.policy({k: told[k] for k in (*agent.spec.obs, "is_first")}, carry, Noise.mode())
            action = {k: torch.where(told["is_last"], 0, v) for k, v in action.items()}
        else:
            action = {k: v[:, t] for k, v in forced.items()}
            out = agent.unroll(
                {k: told[k].unsqueeze(1) for k in agent.spec.obs}, {k: v.unsqueeze(1) for k, v in action.items()},
                told["is_first"].unsqueeze(1), carry, Noise.mode(),
            )
            carry = out.carry
        seen.append((told, truth, action))
        ended = ended | data["is_last"]
        if forced is None and bool(ended.all()):
            break
        if forced is not None and t + 1 == next(iter(forced.values())).shape[1]:
            break
        data, truth = world.step({k: v.to(world.device) for k, v in action.items()})

    def stacked(which: int) -> dict[str, Tensor]:
        return {key: torch.stack([step[which][key] for step in seen], 1) for key in seen[0][which]}

    found = stacked(0)
    last = _first(found["is_last"].cpu())
    return Runs(found, stacked(1), stacked(2), carries, worlds, torch.tensor(list(kinds)), dict(world.kwargs), last)


def _first(flags: Tensor) -> Tensor:
    """(rows,): the first step with the flag; T where there is none."""
    return torch.where(flags, torch.arange(flags.shape[1]), flags.shape[1]).amin(1)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Base runs, their source runs, and when what happens; rows of both agree."""

    cues: Cues
    base: Runs
    source: Runs
    first_cue: Tensor  # (n,) first step of the base with the cue in sight; T where never
    last_cue: Tensor  # (n,) last one; -1 where never
    choice: Tensor  # (n,) first step after it with a choice in sight; T where never
    unlike: Tensor  # (n,) bool: source and base differ although no cue is in sight
    useful: Tensor  # (n,) bool: chosen right, with a delay, and not `unlike`

    @property
    def moment(self) -> Tensor:
        """(n,) t*: the last step of the delay, with neither cue nor choice in sight. Of useful rows."""
        return (self.choice - 1).clamp(min=0)


def make_pairs(model: Any, n: int, *, steps: int = 80, seed: int = 0, other: int = 1) -> Pairs:
    """Play n base episodes with the cues in turn, and each again with the `other`-th next cue and the same actions.

    other: 0 gives sources with the same cue. Raises TraceError where the world has no cue, or no base episode is chosen
    right with a delay between cue and choice.
    """
    cues = Cues(model.spec)
    kinds = cues.balanced(n)
    base = play_runs(model, cues, kinds, steps=steps, seed=seed)
    others = [(k + other) % len(cues.kinds) for k in kinds]
    source = play_runs(model, cues, others, steps=base.steps, seed=seed, forced=base.actions)
    within, step = base.within, torch.arange(base.steps)
    sight = torch.stack([base.truth[name].cpu().bool() | source.truth[name].cpu().bool() for name in cues.marks]).any(0)
    cue = sight & within
    last_cue = torch.where(cue, step, -1).amax(1)
    choice = _first(base.truth["choice_visible"].cpu().bool() & within & (step > last_cue[:, None]))
    differs = torch.zeros_like(within)
    for key in model.spec.obs:
        differs |= (base.data[key] != source.data[key]).flatten(2).any(-1).cpu()
    unlike = (differs & within & ~sight).any(1)
    useful = (base.outcome.cpu() == SUCCESS) & (last_cue >= 0) & (last_cue + 1 < choice) & (choice < base.steps)
    useful &= ~unlike
    if not useful.any():
        raise TraceError(
            f"none of {n} untouched episodes was chosen right with a delay between cue and choice: train the agent "
            f"first, or choose a view that does not show both"
        )
    return Pairs(cues, base, source, _first(cue), last_cue, choice, unlike, useful)
