"""Going on from the middle of recorded episodes, many times over, with something changed at the first step.

All that happened before is the same for every change, so nothing of it is played again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.envs.tensor_world import STATE, TensorWorld
from torchmem.studies.cue_runs import Runs
from torchmem.surgery.schedule import mapped

Change = Callable[[Tensor, int], Tensor]  # (values (m, N) that are there, which step of the hold) -> new values
Changes = Mapping[str, Change]  # by site
ROWS = 4096  # that share a pass


@dataclasses.dataclass(frozen=True)
class Ended:
    """How the episodes of one change ended, each (m,)."""

    outcome: Tensor  # truth `outcome`: RUNNING where it did not end in time
    state: Tensor  # of the world at the end
    steps: Tensor  # from the moment to the end


@dataclasses.dataclass(frozen=True)
class Moment:
    """Rows of runs, each at its own step. The carry is that before the agent sees the step."""

    runs: Runs
    rows: Tensor  # (m,) rows of `runs`
    steps: Tensor  # (m,) a step of each
    own: Runs | None = None  # whose carries to start from, where not those of `runs`

    def __len__(self) -> int:
        return len(self.rows)

    def window(self, values: Tensor, length: int = 1) -> Tensor:
        """values (n, T, ...) of these rows from their step on: (m, length, ...); past the end the last one again."""
        index = (self.steps[:, None] + torch.arange(length)).clamp(max=values.shape[1] - 1)
        return values[self.rows[:, None].to(values.device), index.to(values.device)]

    def at(self, trees: Sequence[Any], copies: int = 1) -> Any:
        """One entry of a list over time for each row, as (copies * m, ...), copy by copy."""

        def pick(*per_step: Tensor) -> Tensor:
            out = per_step[0].new_empty((len(self), *per_step[0].shape[1:]))
            for t in self.steps.unique().tolist():
                here = self.steps == t
                out[here] = per_step[t][self.rows[here]]
            return _again(out, copies)

        return mapped(pick, *trees)

    def _carry(self, copies: int) -> Any:
        return self.at((self.own or self.runs).carries, copies)

    @torch.no_grad()
    def play(self, model: Any, changes: Sequence[Changes], *, steps: int, hold: int = 1) -> list[Ended]:
        """Each change by itself: greedy play from the moment to the end of the episode, at most `steps` steps.

        The change holds during the first `hold` steps.
        """
        found: list[Ended] = []
        for chunk in _chunks(changes, max(1, ROWS // len(self))):
            copies = len(chunk)
            world = _Open(model, self, copies)
            with model.trace.play(
                steps, env=world, carry=self._carry(copies), noise="mode", raw=False
            ) as tr:
                self._write(model, chunk, hold)
            done = tr.out.is_last.cpu()
            last = torch.where(done, torch.arange(steps), steps).amin(1)
            end = last.clamp(max=steps - 1)[:, None]
            parts = (tr.out.truth["outcome"].gather(1, end).squeeze(1), tr.out.truth["state"].gather(1, end).squeeze(1))
            found += [Ended(*each) for each in zip(*(p.view(copies, -1) for p in (*parts, last)), strict=True)]
        return found

    def force(
        self, model: Any, changes: Sequence[Changes], *, steps: int, hold: int = 1, grad: bool = False
    ) -> list[Tensor]:
        """Each change by itself, along what the runs did: logits (m, steps, actions) of the one discrete action.

        grad: keep the graph to what the changes put in.
        """
        given = self.runs.sequence(model.agent)
        found: list[Tensor] = []
        for chunk in _chunks(changes, max(1, ROWS // len(self))):
            batch = {k: _again(self.window(v, steps), len(chunk)) for k, v in given.items()}
            with model.trace(batch, carry=self._carry(len(chunk)), noise="mode", raw=False, grad=grad) as tr:
                self._write(model, chunk, hold)
            (params,) = tr.out.policy.values()
            found += list(params[0].unflatten(0, (len(chunk), len(self))))
        return found

    def read(self, model: Any, site: str, steps: int) -> Tensor:
        """What the site holds along the runs, (m, steps, N)."""
        given = self.runs.sequence(model.agent)
        batch = {k: self.window(v, steps) for k, v in given.items()}
        with model.trace(batch, carry=self._carry(1), noise="mode", raw=False):
            value = model.site(site).save()
        return value.flatten(2)

    def _write(self, model: Any, chunk: Sequence[Changes], hold: int) -> None:
        for site in {name for changes in chunk for name in changes}:
            shape = model.site(site).shape
            for step in range(hold):
                model.site(site).write(_changed(chunk, site, shape, step), (slice(None), step))


def _changed(chunk: Sequence[Changes], site: str, shape: tuple[int, ...], step: int) -> Callable[[Tensor], Tensor]:
    def write(there: Tensor) -> Tensor:
        copies = there.reshape(len(chunk), -1, *shape).flatten(2)
        new = [c[site](part, step) if site in c else part for c, part in zip(chunk, copies, strict=True)]
        return torch.stack(new).reshape(there.shape)

    return write


class _Open:
    """Worlds that stand in the middle of their episodes: the first `step` shows what is there."""

    def __init__(self, model: Any, moment: Moment, copies: int) -> None:
        self.n = copies * len(moment)
        runs = moment.runs
        self.shown: dict[str, Tensor] | None = {
            k: _again(moment.window(v)[:, 0], copies) for k, v in runs.data.items()
        }
        self.world = TensorWorld(model.spec.name, runs.kwargs, self.n, split="record")
        state = moment.at(runs.worlds, copies)
        self.world.load_state_dict({**self.world.state_dict(), **{k: state[k].cpu().numpy() for k in STATE}})

    def step(self, actions: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.shown is not None:
            shown, self.shown = self.shown, None
            return shown, {"outcome": self.world._outcome, "state": self.world._state}
        data, truth = self.world.step({k: torch.as_tensor(v) for k, v in actions.items()})
        return data, {"outcome": truth["outcome"], "state": self.world._state}


def _again(value: Tensor, copies: int) -> Tensor:
    return value.repeat(copies, *[1] * (value.dim() - 1))


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
