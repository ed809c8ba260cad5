"""Recurrent cores. Two ways through each, equal to rounding: step by step through taps, or a whole sequence at once.

Surgery needs the first (an edit of the state at step t must reach step t + 1), learning wants the second. `forward`
takes the first as soon as a hook lies on any part of the core, so that edits and taps hold in training too.
Resets are folded: where is_first, the state is replaced by the start state before the step.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.layers import Tap
from torchmem.models.ppo.gru_scan import GRUScan
from torchmem.models.ppo.legacy import kept_start
from torchmem.models.ppo.lstm_scan import LSTMScan
from torchmem.models.ppo.segments import cut

kernels: Any = torch._VF  # torch.nn.GRU and LSTM call these too; they take weights that an overlay put in place


RUN = 16  # steps without a reset in any row, on average, from which on oneDNN's LSTM is faster than our own scan


class Memory(NamedTuple):
    """What a core carries: `hidden` (B, D) is also its output, `cell` (B, D) is the LSTM's, else (B, 0)."""

    hidden: Tensor
    cell: Tensor


class Core(nn.Module, ABC):
    """x (B, T, F), is_first (B, T), Memory -> outputs (B, T, D) and the Memory after the last step."""

    gates = 0  # of the recurrence
    cell_units = 0
    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter
    start: Tensor

    def __init__(self, size_in: int, units: int, start_scale: float | None) -> None:
        super().__init__()
        self.units = units
        if self.gates:
            bound = 1 / math.sqrt(units)  # torch.nn.GRU's initialisation
            shapes = {"weight_ih": (size_in,), "weight_hh": (units,), "bias_ih": (), "bias_hh": ()}
            for name, rest in shapes.items():
                value = torch.empty(self.gates * units, *rest).uniform_(-bound, bound)
                self.register_parameter(name, nn.Parameter(value))
        width = (units if self.gates else 0) + self.cell_units
        if start_scale is None:
            self.register_buffer("start", torch.zeros(width))
        else:
            self.start = nn.Parameter(start_scale * torch.randn(width))
        self.state = Tap()
        self.legacy = False  # resets as in legacy.py

    @abstractmethod
    def remember(self, span: float) -> None:
        """Set the gates' biases so that at first units keep what they hold for 1 to `span` steps, evenly spread.

        Tallec and Ollivier 2018, arXiv:1804.11188 (chrono initialisation).
        """

    def _hold(self, part: slice, bias: Tensor) -> None:
        with torch.no_grad():
            self.bias_ih[part], self.bias_hh[part] = bias, 0.0

    @abstractmethod
    def step(self, gates: Tensor, memory: Memory) -> Memory:
        """One step through the taps; gates (B, gates * D): what the input contributes."""

    @abstractmethod
    def whole(self, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """A sequence at once; hooks inside would see nothing."""

    def begin(self) -> tuple[Tensor, Tensor]:
        """The start state: hidden (D,), cell (D or 0,)."""
        split = self.start.shape[0] - self.cell_units
        return self.start[:split], self.start[split:]

    def initial(self, batch: int) -> Memory:
        hidden, cell = self.begin()
        return Memory(hidden.expand(batch, -1), cell.expand(batch, -1))

    @property
    def hooked(self) -> bool:
        """Whether anybody reads or writes inside."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.modules() if m is not self)

    def forward(self, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return self.stepwise(x, is_first, memory) if self.hooked or self.legacy else self.whole(x, is_first, memory)

    def stepwise(self, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """The same, one step after the other through the taps."""
        gates = F.linear(x, self.weight_ih, self.bias_ih).unbind(1)
        out = []
        for t, first in enumerate(is_first.unbind(1)):
            memory = self.step(gates[t], self.reset_where(first, memory))
            out.append(memory.hidden)
        return torch.stack(out, 1), memory

    def reset_where(self, first: Tensor, memory: Memory) -> Memory:
        hidden, cell = self.begin()
        first = first.unsqueeze(-1)
        if self.legacy:
            kept = kept_start(memory.hidden, hidden)
            return memory._replace(hidden=torch.where(first & ~kept, 0.0, memory.hidden))
        return Memory(torch.where(first, hidden, memory.hidden), torch.where(first, cell, memory.cell))

    def one(self, x: Tensor, is_first: Tensor, memory: Memory) -> Memory:
        """A single step: x (B, F), is_first (B,)."""
        return self.step(F.linear(x, self.weight_ih, self.bias_ih), self.reset_where(is_first, memory))

    def packed(self, kernel: Any, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """A whole sequence in one call of the library's kernel (cuDNN on a GPU, oneDNN on a CPU where it has one)."""
        pieces = cut(is_first)
        fresh = pieces.fresh.unsqueeze(-1)
        states = [
            torch.where(fresh, start, carried[pieces.column]).unsqueeze(0)
            for start, carried in zip(self.begin(), memory, strict=True)
            if start.numel()
        ]
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        data = x.flatten(0, 1)[pieces.order]
        start = states[0] if len(states) == 1 else states
        out, *ends = kernel(data, pieces.sizes, start, weights, True, 1, 0.0, self.training, False)
        whole = torch.empty_like(out).index_copy(0, pieces.order, out).view(*is_first.shape, self.units)
        cell = memory.cell
        cell = ends[1][0][pieces.final] if self.cell_units else memory.cell
        return whole, Memory(whole[:, -1], cell)


class GRUCore(Core):
    """torch.nn.GRU's equations. Taps: `reset`, `update` (the share of the new candidate), `candidate`, `state`."""

    gates = 3

    def __init__(self, size_in: int, units: int, start_scale: float | None) -> None:
        super().__init__(size_in, units, start_scale)
        self.reset, self.update, self.candidate = Tap(), Tap(), Tap()

    def remember(self, span: float) -> None:
        self._hold(slice(self.units, 2 * self.units), _log_spans(self.units, span))

    def step(self, gates: Tensor, memory: Memory) -> Memory:
        """gates (B, 3 D): what the input contributes."""
        units, h = self.units, memory.hidden
        recurrent = F.linear(h, self.weight_hh, self.bias_hh)
        reset = self.reset(torch.sigmoid(gates[:, :units] + recurrent[:, :units]))
        # torch's gate says what is kept; `update`, as in other agents, what is replaced: sigmoid(-x) = 1 - sigmoid(x)
        update = self.update(torch.sigmoid(-(gates[:, units : 2 * units] + recurrent[:, units : 2 * units])))
        candidate = self.candidate(torch.tanh(gates[:, 2 * units :] + reset * recurrent[:, 2 * units :]))
        return Memory(self.state(torch.lerp(h, candidate, update)), memory.cell)

    def whole(self, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        if x.device.type == "cuda":
            return self.packed(kernels.gru, x, is_first, memory)
        gates = F.linear(x.transpose(0, 1), self.weight_ih, self.bias_ih)
        keep = (~is_first).to(x.dtype).t().unsqueeze(-1)
        hidden = memory.hidden.expand(x.shape[0], -1)
        out: Tensor = GRUScan.apply(gates, hidden, self.weight_hh, self.bias_hh, keep, self.start)  # type: ignore[assignment]
        return out.transpose(0, 1), Memory(out[-1], memory.cell)


class LSTMCore(Core):
    """torch.nn.LSTM's equations. Taps: `write` (input gate), `keep` (forget gate), `show` (output gate), `candidate`,
    `cell`, `state`."""

    gates = 4

    def __init__(self, size_in: int, units: int, start_scale: float | None) -> None:
        self.cell_units = units
        super().__init__(size_in, units, start_scale)
        self.write, self.keep, self.show = Tap(), Tap(), Tap()
        self.candidate, self.cell = Tap(), Tap()

    def remember(self, span: float) -> None:
        spans = _log_spans(self.units, span)
        self._hold(slice(0, self.units), -spans)
        self._hold(slice(self.units, 2 * self.units), spans)

    def step(self, gates: Tensor, memory: Memory) -> Memory:
        """gates (B, 4 D): what the input contributes."""
        write, keep, candidate, show = (gates + F.linear(memory.hidden, self.weight_hh, self.bias_hh)).chunk(4, -1)
        kept = self.keep(torch.sigmoid(keep)) * memory.cell
        cell = self.cell(kept + self.write(torch.sigmoid(write)) * self.candidate(torch.tanh(candidate)))
        return Memory(self.state(self.show(torch.sigmoid(show)) * torch.tanh(cell)), cell)

    def whole(self, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        if x.device.type == "cuda":
            return self.packed(kernels.lstm, x, is_first, memory)
        cuts = is_first[:, 1:].any(0).nonzero().flatten().tolist()
        if len(cuts) < max(x.shape[1] // RUN, 1):
            return self.in_runs(x, is_first, memory, [t + 1 for t in cuts])
        gates = F.linear(x.transpose(0, 1), self.weight_ih, self.bias_ih + self.bias_hh)
        keep = (~is_first).to(x.dtype).t().unsqueeze(-1)
        carried = (part.expand(x.shape[0], -1) for part in memory)
        out, cell = LSTMScan.apply(gates, *carried, self.weight_hh, keep, *self.begin())  # type: ignore[misc]
        return out.transpose(0, 1), Memory(out[-1], cell)

    def in_runs(self, x: Tensor, is_first: Tensor, memory: Memory, cuts: list[int]) -> tuple[Tensor, Memory]:
        """The library's kernel on all rows from one reset of any row to the next. cuts: these steps, step 0 apart."""
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        out = []
        for start, stop in itertools.pairwise([0, *cuts, x.shape[1]]):
            states = [part.unsqueeze(0) for part in self.reset_where(is_first[:, start], memory)]
            hidden, *last = kernels.lstm(x[:, start:stop], states, weights, True, 1, 0.0, self.training, False, True)
            out.append(hidden)
            memory = Memory(*(part[0] for part in last))
        return torch.cat(out, 1), memory


def unchanged(value: Tensor) -> Tensor:
    return value


def _log_spans(units: int, span: float) -> Tensor:
    return torch.empty(units).uniform_(1, max(span - 1, 1 + 1e-6)).log()


class NoMemory(nn.Module):
    """A layer in place of a core: what an agent does that remembers nothing. Its carry holds its last output only.

    units None: no layer, x is handed on. activation: relu or tanh.
    """

    nothing: Tensor

    def __init__(self, size_in: int, units: int | None, activation: str = "relu") -> None:
        super().__init__()
        self.units = size_in if units is None else units
        self.linear, self.activate = nn.Identity(), unchanged
        if units is not None:
            self.linear = nn.Linear(size_in, units)
            nn.init.orthogonal_(self.linear.weight, math.sqrt(2))
            nn.init.zeros_(self.linear.bias)
            self.activate = {"relu": torch.relu, "tanh": torch.tanh}[activation]
        self.register_buffer("nothing", torch.zeros(0), persistent=False)  # knows device and type without a layer
        self.state = Tap()

    def initial(self, batch: int) -> Memory:
        zeros = self.nothing.new_zeros
        return Memory(zeros(batch, self.units), zeros(batch, 0))

    def forward(self, x: Tensor, is_first: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        out = self.state(self.activate(self.linear(x)))
        return out, Memory(out[:, -1], memory.cell)

    stepwise = forward

    def one(self, x: Tensor, is_first: Tensor, memory: Memory) -> Memory:
        return Memory(self.state(self.activate(self.linear(x))), memory.cell)


def make_core(
    kind: str, size_in: int, units: int, start_scale: float | None, legacy: bool = False, activation: str = "relu",
    layer: bool = True,
) -> Core | NoMemory:  # fmt: skip
    """kind: gru, lstm or mlp. start_scale: deviation of the learned start state's first values; None: always zeros.

    legacy: gru only, resets as in legacy.py. activation, layer: mlp only.
    """
    if kind == "mlp":
        return NoMemory(size_in, units if layer else None, activation)
    core = {"gru": GRUCore, "lstm": LSTMCore}[kind](size_in, units, start_scale)
    core.legacy = legacy
    return core
