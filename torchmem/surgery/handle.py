"""model.site(name): an address that can be read, written and asked for its gradient inside a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchmem.surgery.items import Index, Read, Scope, TraceError, Write, pending
from torchmem.types import Site

Marker = Callable[[Any], Any]  # tells nnsight to hand a variable back when the block ends


class Registry:
    """What one trace has registered so far. `scope` says whose rows the line that is running means."""

    def __init__(self, bench: Any, scope: Callable[[], Scope], mark: Marker) -> None:
        self.bench, self.scope, self.mark = bench, scope, mark

    def late(self, site: Site) -> None:
        """Raise where the site's module has already run: the line comes after a raw nnsight line that waited."""
        run = self.bench.running
        if run is not None:
            raise TraceError(
                f"model.site({site.name!r}) stands below a raw nnsight line of this block, which has let the pass "
                f"begin: move all model.site(...) lines above the first raw line"
            )


class SiteHandle:
    """A site of a model. Inside `with model.trace(...)`: `.save()`, `[rows, steps, units]`, `= value`, `.nudge()`."""

    def __init__(self, site: Site, find: Callable[[], Registry | None]) -> None:
        self.site = site
        self._find = find

    def __repr__(self) -> str:
        return f"<site {self.site.name}: (B, T, {', '.join(map(str, self.site.shape))}), once per {self.site.cadence}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes after B and T."""
        return self.site.shape

    @property
    def before(self) -> SiteSlice:
        """The value before the writes and edits of this pass."""
        return SiteSlice(self, slice(None), early=True)

    def save(self) -> Tensor:
        """(B, T, *shape) after all writes and edits: filled when the block ends."""
        return SiteSlice(self, slice(None)).save()

    def __getitem__(self, index: Any) -> SiteSlice:
        return SiteSlice(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.write(value, index)

    def write(self, value: Any, index: Any = slice(None), when: Callable[[Any], Any] | None = None) -> None:
        """Put a value (broadcast over what the index selects) or f(what is there) into the pass.

        when: f(Info) -> bool, or a mask (B,) or (B, L): where it is false the value stays. Raises TraceError.
        """
        registry = self._registry()
        scope = registry.scope()
        chosen = Index(self.site, index, scope)
        if not callable(value):
            value = torch.as_tensor(value, device=registry.bench.tree.device)
            chosen.spread(value, self.site)  # refuses a wrong shape before anything runs
        registry.bench.writes.append(Write(self.site, scope, chosen, value, when))

    def nudge(self) -> Tensor:
        """Add zeros (B, T, *shape) to the site and return them as a leaf: after `backward`, `.grad` is the gradient.

        Needs `trace(..., grad=True)`.
        """
        registry = self._registry()
        scope = registry.scope()
        shape = (scope.count, scope.steps, *self.site.shape)
        zeros = torch.zeros(shape, device=registry.bench.tree.device, requires_grad=True)
        registry.bench.writes.append(Nudge(self.site, scope, Index(self.site, slice(None), scope), zeros))
        registry.mark(zeros)
        return zeros

    def _registry(self) -> Registry:
        registry = self._find()
        if registry is None:
            raise TraceError(
                f"model.site({self.site.name!r}) reads and writes inside `with model.trace(obs):` only; "
                f"outside, use model.edited([...]) or model.run_with_cache(obs)"
            )
        registry.late(self.site)
        return registry


class SiteSlice:
    """Part of a site; see SiteHandle."""

    def __init__(self, handle: SiteHandle, index: Any, early: bool = False) -> None:
        self.handle, self.index, self.early = handle, index, early

    @property
    def before(self) -> SiteSlice:
        return SiteSlice(self.handle, self.index, early=True)

    def __getitem__(self, index: Any) -> SiteSlice:
        return SiteSlice(self.handle, index, self.early)

    def save(self) -> Tensor:
        """What the index selects, filled when the block ends."""
        registry = self.handle._registry()
        scope = registry.scope()
        if scope.count:
            Index(self.handle.site, self.index, scope)  # refuses a wrong index at its line
        slot = pending()
        registry.bench.reads.append(Read(self.handle.site, scope, self.index, self.early, slot))
        registry.mark(slot)
        return slot

    # site[...] += x and the like become functions of the value at that step
    def __iadd__(self, other: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: x + other

    def __isub__(self, other: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: x - other

    def __imul__(self, other: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: x * other


class Nudge(Write):
    """Adds a tensor (B, T, *shape) step by step."""

    def apply(self, view: Tensor, steps: Any, info: Any) -> Tensor:
        assert isinstance(self.value, Tensor)
        wanted = [step for step in steps if step < self.value.shape[1]]
        if not wanted:
            return view
        self.fired = True
        new = view.clone()
        part = self.value[:, wanted[0] : wanted[-1] + 1].to(view.dtype)
        new[self.scope.rows, : len(wanted)] = new[self.scope.rows, : len(wanted)] + part
        return new
