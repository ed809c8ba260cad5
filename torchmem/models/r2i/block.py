"""A stack of S5 layers with norms, nonlinearity, gates and residuals: along whole sequences, or one step at a time.

    z = S5([LN](x));  z = gelu(z);  z = (W1 z + b1) sigmoid(W2 z + b2);  x = [LN](x + z)

The layer's state after the step passes a Tap, `state`, in both modes. Where somebody stands ready to change it, a
sequence is run step by step as well, so that what is written at one step is what the next one starts from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.layers import Tap
from torchmem.models.r2i.config import SSMConfig
from torchmem.models.r2i.layers import LayerNorm, Plain
from torchmem.models.r2i.legacy import upstream_scan
from torchmem.models.r2i.scan import diagonal_scan
from torchmem.models.r2i.ssm import S5
from torchmem.models.taps import changed_by_hooks


class SSMLayer(nn.Module):
    """One layer of the stack, of width H."""

    def __init__(self, width: int, config: SSMConfig) -> None:
        super().__init__()
        self.config = config
        self.s5 = S5(width, config)
        self.state = Tap()
        if config.mlp:
            self.out = Plain(width, width)
        if config.mlp and config.glu:
            self.gate = Plain(width, width)
        if config.norm:
            self.norm = LayerNorm(width, 1e-6)

    def sequence(self, u: Tensor, start: Tensor, init: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, T, H), start and init (B, 2 P), first (B, T) -> outputs (B, T, H) and states (B, T, 2 P)."""
        x = self._before(u)
        abar, gain = self.s5.discretised()
        pairs = (-1, 2)
        scan = upstream_scan if self.config.legacy_reset else diagonal_scan
        drive = self.s5.drive(x, gain).unflatten(-1, pairs)
        wide = drive.dtype
        states = scan(drive, abar, start.to(wide).unflatten(-1, pairs), init.to(wide).unflatten(-1, pairs), first)
        states = self.state(states.flatten(-2))
        return self._after(u, self.s5.read_out(states, x)), states

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, H), state (B, 2 P) -> output (B, H) and the state after the step."""
        x = self._before(u)
        abar, gain = self.s5.discretised()
        state = self.state(self.s5.one(state, self.s5.drive(x, gain), abar))
        return self._after(u, self.s5.read_out(state, x)), state

    def _before(self, u: Tensor) -> Tensor:
        return self.norm(u) if self.config.norm and self.config.prenorm else u

    def _after(self, u: Tensor, y: Tensor) -> Tensor:
        z = F.gelu(y, approximate="tanh")
        if self.config.mlp:
            z = self.out(z) * torch.sigmoid(self.gate(z)) if self.config.glu else self.out(z)
        return self.norm(u + z) if self.config.norm and not self.config.prenorm else u + z


class Stack(nn.Module):
    """`layers` S5 layers. The state of all of them is one tensor (B, N, 2 P)."""

    def __init__(self, width: int, config: SSMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SSMLayer(width, config) for _ in range(config.layers))
        self.state = Tap()  # of all layers, side by side

    @property
    def changed(self) -> bool:
        """Whether some hook may change a state."""
        return changed_by_hooks(self.state, *(layer.state for layer in self.layers))  # pyright: ignore

    def sequence(
        self, u: Tensor, start: Tensor, init: Tensor, first: Tensor, stepwise: bool = False
    ) -> tuple[Tensor, Tensor]:
        """u (B, T, H), start and init (B, N, 2 P), first (B, T) -> outputs (B, T, H) and states (B, T, N, 2 P).

        Parallel in time, unless `stepwise` or a state may be changed on the way: the same numbers up to rounding.
        """
        if stepwise or (not torch.compiler.is_compiling() and self.changed):
            return self._loop(u, start, init, first)
        states = []
        for layer, x0, fresh in zip(self.layers, start.unbind(1), init.unbind(1), strict=True):
            u, state = layer.sequence(u, x0, fresh, first)  # pyright: ignore
            states.append(state)
        return u, self._named(torch.stack(states, -2))

    def step(self, u: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, H), states (B, N, 2 P) -> output (B, H) and the states after the step."""
        after = []
        for layer, state in zip(self.layers, states.unbind(1), strict=True):
            u, state = layer.step(u, state)  # pyright: ignore
            after.append(state)
        return u, self._named(torch.stack(after, -2))

    def _named(self, states: Tensor) -> Tensor:
        return self.state(states.flatten(-2)).unflatten(-1, states.shape[-2:])

    def _loop(self, u: Tensor, states: Tensor, init: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        outputs, seen = [], []
        for now, reset in zip(u.unbind(1), first.unbind(1), strict=True):
            states = torch.where(reset[:, None, None], init.to(states.dtype), states)
            y, states = self.step(now, states)
            outputs.append(y)
            seen.append(states)
        return torch.stack(outputs, 1), torch.stack(seen, 1)
