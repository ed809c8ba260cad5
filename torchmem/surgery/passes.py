"""The bench: a twin of the agent on which edits lie and traces look. It knows which pass runs and at which step.

Every public method of the twin that computes (`policy`, `unroll`, `imagine`, `read_out`, `loss`, ...) is one pass.
While it runs, the modules that somebody reads or writes carry a hook, and weight edits take the place of the
parameters; after it, the tree is bare again. A hook sees a module's output in one canonical form, (B, L, *site.shape)
with L = 1 where the module runs once per step, L = T where it sees the whole sequence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchmem.models.twin import twin
from torchmem.surgery.items import Read, TraceError, Write
from torchmem.surgery.overlay import Overlay
from torchmem.surgery.selection import At, SiteEdit
from torchmem.types import Site

Kind = Literal["unroll", "imagine", "act", "loss"]
# method of an agent -> what it does with time
PASSES: dict[str, Kind] = {
    "policy": "act",
    "read_out": "act",
    "unroll": "unroll",
    "observe": "unroll",
    "imagine": "imagine",
    "loss": "loss",
    "loss_parts": "loss",
    "world_loss": "loss",
}


@dataclasses.dataclass
class Info:
    """What a condition (`when=`) may look at, for the steps that a module is about to hand on.

    step (B, L): position in the sequence or, while acting, in the episode. obs and truth: (B, ...) of this step while
    acting (truth only where worlds are played), else None.
    """

    kind: Kind
    step: Tensor
    is_first: Tensor | None  # (B, L)
    obs: Mapping[str, Tensor] | None = None
    truth: Mapping[str, Tensor] | None = None


@dataclasses.dataclass
class Standing:
    """Site edits in force, and the condition under which they hold."""

    edits: tuple[SiteEdit, ...]
    when: Callable[[Info], Any] | None


@dataclasses.dataclass
class Pass:
    kind: Kind
    rows: int
    steps: int
    is_first: Tensor | None  # (B, T)
    carry: Any
    obs: Mapping[str, Tensor] | None
    offset: int = 0  # acting: how many steps of this trace came before
    again: bool = False  # `read_out`, a second look at the step that acted: a trace has read and written it already
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    previous: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # path -> last view, for movement edits


class Bench:
    """Holds the twin tree, the edits in force and what the trace in progress has registered."""

    def __init__(self, agent: Any) -> None:
        self.tree: Any = twin(agent)
        self.sites: Mapping[str, Site] = self.tree.sites  # found on the bare tree
        self.standing: list[Standing] = []
        self.weight_edits: list[Any] = []
        self.registry: Any = None  # of the trace in progress
        self.reads: list[Read] = []
        self.writes: list[Write] = []
        self.acted = 0  # steps of the play in progress
        self.episode_step: Tensor | None = None  # (B,) of rows that act
        self.truth: Mapping[str, Tensor] | None = None  # of the step about to be acted on; set by whoever plays
        self.running: Pass | None = None
        self.acting: Pass | None = None  # the last acting step
        for name, kind in PASSES.items():
            if hasattr(self.tree, name):
                object.__setattr__(self.tree, name, self._wrapped(getattr(self.tree, name), name, kind))

    # Passes ----------------------------------------------------------------------------------------------------------

    def _wrapped(self, method: Callable, name: str, kind: Kind) -> Callable:
        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.running is not None:  # imagination inside a loss
                return method(*args, **kwargs)
            if not (self.standing or self.weight_edits or self.registry):
                return method(*args, **kwargs)
            with self._passing(self._describe(name, kind, args, kwargs)):
                return method(*args, **kwargs)

        return run

    def _describe(self, name: str, kind: Kind, args: tuple, kwargs: dict) -> Pass:
        given = dict(zip(_ARGUMENTS.get(name, ()), args, strict=False)) | kwargs
        if kind == "unroll":
            first = given["is_first"]
            return Pass(kind, first.shape[0], first.shape[1], first, given["carry"], given["obs"])
        if name == "policy":
            first = given["obs"]["is_first"]
            steps = self.episode_step
            if steps is None or steps.shape != first.shape:
                steps = torch.zeros_like(first, dtype=torch.long) - 1
            self.episode_step = torch.where(first, 0, steps + 1)
            self.acted += 1
            self.acting = Pass(kind, len(first), 1, first.unsqueeze(1), given["carry"], given["obs"], self.acted - 1)
            return self.acting
        if name == "read_out":
            rows, step = _rows(given["carry"]), self.acting
            if step is None or step.rows != rows:
                return Pass(kind, rows, 1, None, given["carry"], None, again=True)
            return dataclasses.replace(step, carry=given["carry"], counts={}, previous={}, again=True)
        if kind == "imagine":
            rows = given["start"].deter.shape[0] if hasattr(given["start"], "deter") else _rows(given["start"])
            return Pass(kind, rows, int(given["horizon"]), None, given["start"], None)
        return Pass(kind, 0, 0, None, None, None)

    @contextmanager
    def _passing(self, running: Pass) -> Iterator[None]:
        handles = []
        paths = {}
        for standing in self.standing:
            for edit in standing.edits:
                site = self.sites[edit.site]
                paths[site.path] = site
        if not running.again:
            for item in (*self.reads, *self.writes):
                paths[item.site.path] = item.site
        self.running = running
        try:
            for path, site in paths.items():
                hook = functools.partial(self._hook, site)
                # After nnsight's turn, which wraps `forward`: a raw line sees the module's own output, a raw write
                # changes it, and what was registered acts on that.
                handles.append(self.tree.get_submodule(path).register_forward_hook(hook))
            with Overlay(self.tree, self.weight_edits):
                yield
        finally:
            self.running = None
            for handle in handles:
                handle.remove()

    def _hook(self, site: Site, module: nn.Module, args: Any, output: Any) -> Any:
        run = self.running
        if run is None:
            return None
        call = run.counts.get(site.path, 0)
        run.counts[site.path] = call + 1
        view = canonical(output, site, run)
        whole = run.kind == "unroll" and site.cadence == "sequence"
        steps = range(run.steps) if whole else range(call, call + 1)
        new = self._standing(site, view, steps, run)
        if run.again:
            return None if new is view else new.reshape(output.shape)
        traced = range(run.offset, run.offset + 1) if run.kind == "act" else steps
        for read in self.reads:
            if read.early and read.site.path == site.path:
                read.take(view)
        info = None
        for write in self.writes:
            if write.site.path == site.path:
                if write.when is not None and info is None:
                    info = self._info(run, view, steps)
                new = write.apply(new, traced, info)
        for read in self.reads:
            if not read.early and read.site.path == site.path:
                read.take(new)
        run.previous[site.path] = new[:, -1:]
        return None if new is view else new.reshape(output.shape)

    # Edits in force --------------------------------------------------------------------------------------------------

    def _standing(self, site: Site, view: Tensor, steps: range, run: Pass) -> Tensor:
        for standing in self.standing:
            for edit in standing.edits:
                if self.sites[edit.site].path == site.path:
                    view = self._edited(edit, standing.when, site, view, steps, run)
        return view

    def _edited(
        self, edit: SiteEdit, when: Callable | None, site: Site, view: Tensor, steps: range, run: Pass
    ) -> Tensor:
        if run.kind == "loss" and not (edit.everywhere and when is None):
            raise TraceError(
                f"{edit.describe()} names steps, rows or a condition, which a training batch does not have: while "
                f"training, only edits of all rows and steps can hold"
            )
        before = None if run.kind == "loss" else self._previous(site, run, edit)
        if run.kind == "act" and edit.stepwise and self.episode_step is not None:
            new = view  # rows stand at different steps of their episodes
            for step in self.episode_step.unique().tolist():
                at = At(steps=[step], kind="act", is_first=run.is_first, previous=before)
                changed = edit.apply(view, at)
                if changed is not view:
                    new = torch.where(_like(self.episode_step == step, view), changed, new)
        else:
            first = run.is_first
            if first is not None and run.kind == "unroll":
                first = first[:, steps.start : steps.stop]
            new = edit.apply(view, At(steps=list(steps), kind=run.kind, is_first=first, previous=before))
        if when is not None and new is not view:
            new = torch.where(_like(torch.as_tensor(when(self._info(run, view, steps))), view), new, view)
        return new

    def _previous(self, site: Site, run: Pass, edit: SiteEdit) -> Tensor | None:
        """The value of this site one step earlier: from this pass, or from the carry where the site is the memory."""
        if not edit.moves:
            return None
        if site.path in run.previous:
            return run.previous[site.path]
        if site.path == self.sites["memory"].path and run.carry is not None:
            try:
                memory = self.tree.memory_of(run.carry)
            except AttributeError:
                return None
            return memory.reshape(run.rows, 1, *site.shape)
        if run.kind == "act":
            raise TraceError(
                f"{edit.describe()} edits movement, and while acting only the movement of the carried state is known: "
                f"use the site 'memory' ({self.sites['memory'].path})"
            )
        return None

    def _info(self, run: Pass, view: Tensor, steps: range) -> Info:
        if run.kind == "act" and self.episode_step is not None:
            return Info("act", self.episode_step.unsqueeze(1), run.is_first, run.obs, self.truth)
        step = torch.tensor(list(steps), device=view.device).expand(view.shape[0], -1)
        first = None if run.is_first is None else run.is_first[:, steps.start : steps.stop]
        return Info(run.kind, step, first)


_ARGUMENTS = {
    "policy": ("obs", "carry", "noise"),
    "read_out": ("carry",),
    "unroll": ("obs", "actions", "is_first", "carry", "noise"),
    "observe": ("obs", "actions", "is_first", "carry", "noise"),
    "imagine": ("start", "horizon", "noise", "actions"),
}


def canonical(output: Any, site: Site, run: Pass) -> Tensor:
    """A module's output as (B, L, *site.shape). Raises TraceError where it does not have the site's form."""
    inner = len(site.shape)
    if isinstance(output, Tensor) and tuple(output.shape[output.dim() - inner :]) == site.shape:
        lead = tuple(output.shape[: output.dim() - inner])
        if run.kind == "loss":
            return output.reshape(-1, 1, *site.shape)
        if run.kind == "unroll" and site.cadence == "sequence":
            if lead == (run.rows, run.steps):
                return output
            if lead == (run.rows * run.steps,):
                return output.unflatten(0, (run.rows, run.steps))
        elif lead == (run.rows,):
            return output.unsqueeze(1)
    got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise TraceError(f"site {site.name} gave {got} in {run.kind}, expected rows {run.rows} x {list(site.shape)}")


def _like(mask: Tensor, view: Tensor) -> Tensor:
    """A mask (), (B,) or (B, L) that broadcasts against view (B, L, ...)."""
    return mask.to(view.device).reshape(*mask.shape, *(1,) * (view.dim() - mask.dim())) if mask.dim() else mask


def _rows(carry: Any) -> int:
    return next(iter(carry)).shape[0]

