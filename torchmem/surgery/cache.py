"""TransformerLens-style shortcuts over the same sites: run with a cache, run with hooks."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmem.surgery.handle import SiteHandle
from torchmem.surgery.items import Index, Scope, TraceError, Write
from torchmem.types import Site


class SiteCache(Mapping[str, Tensor]):
    """Values by site, then time: cache[name] (B, T, *shape), cache[name, t] (B, *shape)."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = dict(values)

    def __getitem__(self, key: Any) -> Tensor:
        name, *rest = key if isinstance(key, tuple) else (key,)
        if name not in self._values:
            raise KeyError(f"site {name!r} is not in this cache; it has {', '.join(self._values) or 'nothing'}")
        value = self._values[name]
        return value[(slice(None), *rest)] if rest else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        lines = (f"  {name}: {list(value.shape)}" for name, value in self._values.items())
        return "\n".join(["SiteCache, (B, T, ...):", *lines])


def matching(sites: Mapping[str, Site], names: str | Sequence[str] | Callable[[str], bool] | None) -> list[str]:
    """The site names that a filter chooses, in the model's order. Raises TraceError where a pattern meets none."""
    if names is None:
        return list(sites)
    if callable(names):
        return [name for name in sites if names(name)]
    patterns = [names] if isinstance(names, str) else list(names)
    found = {pattern: fnmatch.filter(sites, pattern) for pattern in patterns}
    empty = [pattern for pattern, there in found.items() if not there]
    if empty:
        raise TraceError(f"no site matches {empty[0]!r}; print(model) lists all")
    chosen = {name for there in found.values() for name in there}
    return [name for name in sites if name in chosen]


def run_with_cache(model: Any, obs: Any, names: Any = None, **given: Any) -> tuple[Any, SiteCache]:
    """See Model.run_with_cache."""
    chosen = matching(model.sites, names)
    slots = {}
    with model.trace(obs, raw=False, **given) as tracer:
        for name in chosen:
            slots[name] = model.site(name).save()
    return tracer.out, SiteCache(slots)


class Hooked(Write):
    """A function at a site; it may look without changing anything."""

    def apply(self, view: Tensor, steps: Any, info: Any) -> Tensor:
        self.fired = True
        assert callable(self.value)
        new = self.value(view, info)  # pyright: ignore[reportCallIssue]
        if new is None:
            return view
        if not isinstance(new, Tensor) or new.shape != view.shape:
            got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise TraceError(f"a hook at site {self.site.name} returned {got}, expected {list(view.shape)} or None")
        return new.to(view.dtype)


def run_with_hooks(model: Any, obs: Any, fwd_hooks: Sequence[tuple[str, Callable]], **given: Any) -> Any:
    """See Model.run_with_hooks."""
    with model.trace(obs, raw=False, **given) as tracer:
        for name, function in fwd_hooks:
            handle: SiteHandle = model.site(name)
            scope: Scope = handle._registry().scope()
            hooked = Hooked(handle.site, scope, Index(handle.site, slice(None), scope), function, when=_always)
            model._bench.writes.append(hooked)
    return tracer.out


def _always(info: Any) -> Tensor:
    return torch.ones(())
