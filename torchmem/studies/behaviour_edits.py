"""What an edit asks of an agent: in these episodes, act as you would in those (circuits spec section 10).

An edit maps an episode to another of the same world: "as if the cue had been the other one". What the agent itself does
there, with the actions forced upon it here, is the example to learn from; so nothing is asked of it that it could not
know. Episodes that the edit does not name must go on as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.envs.tensor_tables import RUNNING, SUCCESS
from torchmem.envs.tensor_world import TensorWorld
from torchmem.models.noise import Noise
from torchmem.studies.cue_runs import Cues, play_runs
from torchmem.surgery.policy_distance import Bed

Options = dict[str, Any]  # what opens an episode: cue, layout, ..., see `TensorWorld.episodes`
KINDS = ("key", "ball", "box")


@dataclasses.dataclass(frozen=True)
class BehaviourEdit:
    """name; applies(options) -> whether the edit means this episode; as_if(options) -> the episode to act for."""

    name: str
    applies: Callable[[Options], bool]
    as_if: Callable[[Options], Options]


def _other_cue(options: Options) -> Options:
    return {**options, "cue": "ball" if options["cue"] == "key" else "key"}


def _cue_is(kind: str) -> Callable[[Options], bool]:
    return lambda options: options["cue"] == kind


def _next_corner(options: Options) -> Options:
    there = [kind for kind in KINDS if kind in options["layout"]]
    return {**options, "cue": there[(there.index(options["cue"]) + 1) % len(there)]}


def _always(_: Options) -> bool:
    return True


EDITS: dict[str, dict[str, BehaviourEdit]] = {
    "minigrid_memory": {
        e.name: e
        for e in (
            BehaviourEdit("anti_match", _always, _other_cue),
            BehaviourEdit("flip_key_only", _cue_is("key"), _other_cue),
            BehaviourEdit("flip_ball_only", _cue_is("ball"), _other_cue),
            BehaviourEdit("always_up", _always, lambda o: {**o, "cue": o["layout"]}),
            BehaviourEdit("always_down", _always, lambda o: _other_cue({**o, "cue": o["layout"]})),
        )
    },
    "minigrid_switching": {
        e.name: e
        for e in (
            BehaviourEdit(
                "obey_first_cue", lambda o: o["niche"][-1] != o["cue"],
                lambda o: {**o, "niche": (*o["niche"][:-1], o["cue"])},
            ),
            BehaviourEdit("invert_rule", _always, lambda o: {**o, "switch": not o["switch"]}),
        )
    },
    "minigrid_four_room": {"next_corner": BehaviourEdit("next_corner", _always, _next_corner)},
}  # fmt: skip


def edits_of(spec: Any) -> dict[str, BehaviourEdit]:
    """The built-in edits that make sense in this world. Raises ValueError where there are none."""
    found = dict(EDITS.get(spec.name, {}))
    if spec.name == "minigrid_switching":
        mode = spec.kwargs.get("mode", "cue")
        found = {n: e for n, e in found.items() if n == {"cue": "obey_first_cue", "rule": "invert_rule"}.get(mode)}
    if not found:
        raise ValueError(f"there is no edit for {spec.name} {dict(spec.kwargs)}: give edits=[BehaviourEdit(...)]")
    return found


@dataclasses.dataclass(frozen=True)
class EditSet:
    """Episodes of a world, which of them an edit means, and how they are judged.

    options: one per episode. wanted: the episode to act for, the same where the edit does not apply. applies (n,).
    kwargs: further arguments of the world.
    """

    spec: Any
    options: list[Options]
    wanted: list[Options]
    applies: Tensor
    kwargs: Mapping[str, Any]

    @classmethod
    def draw(
        cls, spec: Any, edit: BehaviourEdit, n: int, seed: int, kwargs: Mapping[str, Any] | None = None
    ) -> EditSet:
        """n episodes from `seed`, every kind of cue in turn."""
        whole = {**spec.kwargs, **(kwargs or {})}
        world = TensorWorld(spec.name, whole, n, split="record", seed=seed)
        cues = Cues(spec)
        world.reset({"cue": [cues.kinds[k] for k in cues.balanced(n)]})
        options = world.episodes()
        applies = [edit.applies(o) for o in options]
        wanted = [edit.as_if(o) if a else o for o, a in zip(options, applies, strict=True)]
        return cls(spec, options, wanted, torch.tensor(applies), whole)

    def some(self, rows: Sequence[int]) -> EditSet:
        """Only these episodes."""
        return dataclasses.replace(
            self, options=[self.options[i] for i in rows], wanted=[self.wanted[i] for i in rows],
            applies=self.applies[list(rows)],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.options)

    def bed(self, model: Any, applies: bool, steps: int) -> Bed | None:
        """What is to be done in the episodes that the edit means, or is to be kept in the others; None without any."""
        rows = (self.applies == applies).nonzero().squeeze(1).tolist()
        if not rows:
            return None
        part = self.some(rows)
        acted = part._played(model, part.wanted, steps)
        runs = part._played(model, part.options, acted.steps, forced=acted.actions) if applies else acted
        counts = (torch.arange(runs.steps) < runs.last[:, None]).float()
        return Bed.of(model.agent, runs.sequence(model.agent), counts)

    def _played(self, model: Any, options: list[Options], steps: int, forced: Any = None) -> Any:
        cues = Cues(self.spec)
        kinds = [cues.kinds.index(o["cue"]) for o in options]
        rest = {key: [o[key] for o in options] for key in options[0] if key != "cue"}
        return play_runs(
            model, cues, kinds, steps=steps, seed=0, forced=forced, options=rest, kwargs=self.kwargs
        )

    @torch.no_grad()
    def judge(self, model: Any, steps: int) -> dict[str, float]:
        """Closed loop. edit: share of meant episodes that end where they should now. keep: share of the others that
        still succeed, NaN without any. lost: share of all that reach no end in time."""
        agent, n = model.agent, len(self)
        world = TensorWorld(self.spec.name, self.kwargs, n, split="record")
        data, _ = world.reset({key: [o[key] for o in self.options] for key in self.options[0]})
        carry, state, ended = agent.initial(n), torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.bool)
        (key,) = self.spec.action
        for _ in range(steps):
            told = {k: data[k].to(agent.device) for k in (*self.spec.obs, "is_first")}
            action, carry, _ = agent.policy(told, carry, Noise.mode())
            data, _ = world.step({key: action[key].cpu()})
            state = torch.where(ended, state, world._state)
            ended = ended | data["is_last"]
            if bool(ended.all()):
                break
        end = self._ends(world, state)
        right = ended & (end == SUCCESS)
        meant = self.applies
        return {
            "edit": float(right[meant].float().mean()) if meant.any() else float("nan"),
            "keep": float(right[~meant].float().mean()) if (~meant).any() else float("nan"),
            "lost": float((~ended).float().mean() + (ended & (end == RUNNING)).float().mean()),
        }

    def _ends(self, world: TensorWorld, state: Tensor) -> Tensor:
        """What the pose of each state is worth in the wanted episode."""
        tables = world.tables
        index = {layout: k for k, layout in enumerate(tables.layouts)}
        found = []
        for s, options in zip(state.tolist(), self.wanted, strict=True):
            layout = tables.layouts[tables.layout[s]].changed(
                {k: v for k, v in options.items() if k in tables.layouts[0].OPTIONS}
            )
            x, y, heading = tables.poses[s]
            there = int(tables.ids[index[layout], x, y, heading])
            found.append(int(tables.end[there]) if there >= 0 else RUNNING)
        return torch.tensor(found)
