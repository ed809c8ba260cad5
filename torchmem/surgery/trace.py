"""model.trace: run a pass and read, write or differentiate its values, on nnsight.

    with model.trace(obs) as tr:                       # unroll given sequences
        h = model.site("memory").save()                # (B, T, D), filled when the block ends
        model.site("memory")[:, 5, [3, 7]] = 0         # at step 5
        gate = model.dynamics.core.update.output.save()  # a raw nnsight line: the first call, step 0
    tr.out.value                                       # the outputs

Site lines are registered; nothing but hooks on their modules is needed to serve them. The block itself is captured by
nnsight, so that raw lines work beside them: these see a module's own output, and what was registered acts after them.
`raw=False` runs the block as plain Python instead: no source is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from greenlet import getcurrent
from nnsight import NNsight
from nnsight.intervention.batching import Batcher
from nnsight.intervention.tracer import InterleavingTracer, Invoker
from nnsight.tracing.tracer import mark
from torch import Tensor

from torchmem.surgery.handle import Registry
from torchmem.surgery.items import Scope, TraceError
from torchmem.surgery.passes import Bench
from torchmem.surgery.play import live
from torchmem.surgery.request import Request, dream, merge

Runner = Callable[[Request], Any]
Parser = Callable[..., Request]  # what `trace` and `invoke` are given -> the request it means


class RowBatcher(Batcher):
    """Rows of an invoke, also where a module runs on B * T (batch-major) instead of B rows."""

    def _narrow_tensor(self, tensor: Tensor, group: list) -> Tensor:
        if self._fits(tensor) == 1:
            return super()._narrow_tensor(tensor, group)
        return tensor.narrow(0, *self._scaled(tensor, group)) if self._fits(tensor) else tensor

    def _widen_tensor(self, full: Tensor, group: list, edited: Tensor) -> Tensor:
        if not self._fits(full):
            return edited
        start, size = self._scaled(full, group)
        return torch.cat([full[:start], edited, full[start + size :]])

    def _fits(self, tensor: Tensor) -> int:
        """How many rows of the tensor belong to one row of the batch; 0 where it is not batched."""
        return tensor.shape[0] // self.total if tensor.dim() and not tensor.shape[0] % self.total else 0

    def _scaled(self, tensor: Tensor, group: list) -> list[int]:
        return [n * self._fits(tensor) for n in group]


class Tree(NNsight):
    """nnsight's view of the twin tree."""

    _batcher_class = RowBatcher

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return inputs[0].rows if inputs else 0

    def _batch(self, invokes: list[tuple], fn: Any) -> tuple:
        return (merge([inputs[0] for inputs, _ in invokes]),), {}


class _Outputs:
    """What a trace leaves: `out`, the outputs of the pass, and `outs`, one per invoke."""

    out: Any = None
    outs: list[Any]

    def keep(self, out: Any, requests: list[Request]) -> None:
        self.out, self.outs, start = out, [], 0
        for request in requests:
            self.outs.append(_part(out, slice(start, start + request.rows), request.steps, request.kind))
            start += request.rows


class SiteTracer(InterleavingTracer, _Outputs):
    """nnsight's tracer, with the site lines of its block registered on the bench."""

    def __init__(self, tree: Tree, run: Runner, parse: Parser, bench: Bench, *requests: Request) -> None:
        super().__init__(tree, self._call, *requests)
        self.run_pass, self.read_input, self.bench = run, parse, bench
        self.requests: list[Request] = list(requests)
        self.outs = []

    def _call(self, request: Request) -> Any:
        self.keep(self.run_pass(request), self.requests)
        return self.out

    def invoke(self, *args: Any, **kwargs: Any) -> Invoker:
        """One more input for the same pass; its block sees and changes its own rows only. Arguments as for `trace`."""
        if not (args or kwargs):
            return Invoker(self)
        request = self.read_input(*args, **kwargs)
        self.requests.append(request)
        return Invoker(self, request)

    def execute(self, code: CodeType) -> None:
        with registered(self.bench, self._scope, mark):
            super().execute(code)

    def _scope(self) -> Scope:
        """The rows of the invoke whose block is running; of everything where there is one input only."""
        mediator = getattr(getcurrent(), "mediator", None)
        if mediator is None:
            raise TraceError("inside `with model.trace() as tr:` site lines belong into a `with tr.invoke(obs):` block")
        group = mediator().batch_group
        return scope_of(self.requests, group[0] if group else None)


class PlainTracer(_Outputs):
    """The same without nnsight: the block runs as it stands, then the pass. No raw lines."""

    def __init__(self, run: Runner, parse: Parser, bench: Bench, *requests: Request) -> None:
        self.run_pass, self.read_input, self.bench = run, parse, bench
        self.requests: list[Request] = list(requests)
        self.outs = []
        self._start: int | None = None if len(requests) != 1 else 0

    def __enter__(self) -> PlainTracer:
        self._open = registered(self.bench, self._scope, lambda value: value)
        self._open.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None:
            self._open.__exit__(kind, error, trace)
            return
        try:
            if not self.requests:
                raise TraceError("trace() needs an input, or at least one `with tr.invoke(obs):` block")
            self.keep(self.run_pass(merge(self.requests)), self.requests)
        except BaseException as fault:
            self._open.__exit__(type(fault), fault, fault.__traceback__)
            raise
        self._open.__exit__(None, None, None)

    @contextmanager
    def invoke(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        self._start = sum(r.rows for r in self.requests)
        self.requests.append(self.read_input(*args, **kwargs))
        try:
            yield
        finally:
            self._start = None

    @contextmanager
    def rows_of(self, number: int) -> Iterator[None]:
        """Site lines inside mean the rows of the request with this number."""
        self._start = sum(r.rows for r in self.requests[:number])
        try:
            yield
        finally:
            self._start = None

    def _scope(self) -> Scope:
        if self._start is None:
            raise TraceError("inside `with model.trace() as tr:` site lines belong into a `with tr.invoke(obs):` block")
        return scope_of(self.requests, self._start)


def scope_of(requests: list[Request], start: int | None) -> Scope:
    """The scope of the request whose first row is `start`; None: all of them."""
    if start is None:
        return Scope(slice(None), sum(r.rows for r in requests), max((r.steps for r in requests), default=0))
    first = 0
    for request in requests:
        if first == start:
            return Scope(slice(first, first + request.rows), request.rows, request.steps)
        first += request.rows
    raise TraceError(f"no invoke begins at row {start}")


@contextmanager
def registered(bench: Bench, scope: Callable[[], Scope], mark_: Callable[[Any], Any]) -> Iterator[None]:
    """Let site lines register on the bench; afterwards fill the reads and refuse what never happened."""
    if bench.registry is not None:
        raise TraceError("a trace is open already: end its block first")
    bench.registry = Registry(bench, scope, mark_)
    bench.acted, bench.episode_step = 0, None
    try:
        yield
        for read in bench.reads:
            if not read.parts:
                raise TraceError(_never(bench, read.site.name, "read"))
            read.finish()
        for write in bench.writes:
            if not write.fired:
                raise TraceError(_never(bench, write.site.name, "write"))
    finally:
        bench.registry = None
        bench.reads, bench.writes = [], []


def _never(bench: Bench, name: str, what: str) -> str:
    return (
        f"the {what} of site {name!r} never happened: its module did not run in this pass at the steps asked for "
        f"(heads and decoder run while observing; only the policy's path runs while acting or imagining)"
    )


def _part(out: Any, rows: slice, steps: int, kind: str) -> Any:
    """The rows and steps of one request of every tensor in the outputs; a carry past padding is None."""
    if isinstance(out, Tensor):
        return out[rows, : steps + (kind == "imagine")] if out.dim() > 1 else out[rows]
    if isinstance(out, dict):
        return {key: _part(value, rows, steps, kind) for key, value in out.items()}
    if hasattr(out, "_fields"):
        values = {f: _part(getattr(out, f), rows, steps, kind) for f in out._fields if f != "carry"}
        if "carry" in out._fields:
            longest = _longest(out)
            values["carry"] = _rows(out.carry, rows) if longest is None or longest == steps else None
        return type(out)(**values)
    if isinstance(out, (tuple, list)):
        return type(out)(_part(value, rows, steps, kind) for value in out)
    return out


def _longest(out: Any) -> int | None:
    value = getattr(out, "value", None)
    return value.shape[1] if isinstance(value, Tensor) and value.dim() > 1 else None


def _rows(tree: Any, rows: slice) -> Any:
    if isinstance(tree, Tensor):
        return tree[rows]
    if isinstance(tree, dict):
        return {key: _rows(value, rows) for key, value in tree.items()}
    values = [_rows(value, rows) for value in tree]
    return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)


class TraceVerb:
    """`model.trace`; see the module's docstring.

    Common arguments. raw: False runs the block as plain Python, without nnsight (no raw lines, no source needed).
    grad: keep the graph, for `backward` after the block. seed: of the noise, where no `noise` is given.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *obs: Any, raw: bool = True, grad: bool = False, **given: Any) -> Any:
        """Unroll given sequences: obs, actions=, is_first=, carry=, noise=, seed= (see `request.sequence`).

        Without obs, each `with tr.invoke(obs, ...):` adds an input, and all share one pass.
        """
        return self._tracer(self.model._sequence, raw, grad, obs, given)

    def imagine(self, *carry: Any, raw: bool = True, grad: bool = False, **given: Any) -> Any:
        """Imagine: carry, horizon, actions=, noise=, seed= (see `request.dream`). Steps count the module's calls."""
        return self._tracer(functools.partial(dream, self.model.agent), raw, grad, carry, given)

    def play(self, steps: int, raw: bool = True, grad: bool = False, **given: Any) -> Any:
        """A live rollout of `steps` steps: envs=, seed=, greedy=, env= (see `play.live`), or obs= to act on."""
        return self._tracer(functools.partial(live, self.model.agent), raw, grad, (steps,), given)

    def _tracer(self, parse: Parser, raw: bool, grad: bool, args: tuple, given: dict) -> Any:
        model = self.model
        requests = (parse(*args, **given),) if args or given else ()

        def run(request: Request) -> Any:
            with torch.set_grad_enabled(grad):
                return model._run(request)

        if raw:
            return SiteTracer(model._nnsight(), run, parse, model._bench, *requests)
        return PlainTracer(run, parse, model._bench, *requests)
