"""One update: noise, loss, gradient, all-reduce, optimiser, slow critic. Knows no world and no replay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.models.noise import Noise
from torchmem.models.protocol import LossOut
from torchmem.training.processes import Processes

log = logging.getLogger("torchmem")


class NaNLoss(TorchmemError):
    """The loss is not finite; nothing after the last snapshot is worth keeping."""


class Learner:
    """Trains one agent on batches of sequences.

    Several processes: each gives its own part of the batch; gradients are averaged by one flat all-reduce, and the
    return range is taken over the gathered returns, so that N parts train as one batch does.
    """

    def __init__(self, agent, batch: int, length: int, seed: int, processes: Processes) -> None:
        self.agent, self.processes = agent, processes
        self.batch, self.length = batch, length  # of this process
        self.optimiser = agent.optimiser()
        self.parameters = [p for _, p in agent.trained()]
        self.generator = torch.Generator(agent.device).manual_seed(seed * 1000 + processes.rank + 1)
        self.loss: Callable[..., LossOut] = agent.loss  # or its compiled form
        self.finite = torch.ones((), dtype=torch.bool, device=agent.device)
        if hasattr(agent, "behaviour"):
            agent.behaviour.gather = processes.gather

    def update(self, batch: Mapping[str, Tensor], noise: Noise | None = None) -> LossOut:
        """One optimiser step on batch[key] (B, 1 + T, ...) on the agent's device. noise: default, a fresh draw.

        Raises NaNLoss on a CPU at once; elsewhere `check` does, because looking would wait for the device.
        """
        if noise is None:
            noise = self.agent.training_noise(self.batch, self.length, self.generator)
        out = self.loss(batch, noise)
        out.total.backward()
        total = out.total.detach().clone()
        # The total goes along, so that a NaN in one process is seen, and ends the run, in all of them.
        self.processes.average([*(p.grad for p in self.parameters), total])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        out.metrics["gradient_norm"] = self.optimiser.gradient_norm
        self.finite &= torch.isfinite(total) & torch.isfinite(self.optimiser.gradient_norm)
        if self.finite.device.type == "cpu":
            self.check(out.metrics)
        self.agent.commit(out)
        return out

    def check(self, metrics: Mapping[str, Tensor] | None = None) -> None:
        """Raise NaNLoss if any loss or gradient so far was not finite; waits for the device."""
        if not bool(self.finite):
            told = {k: v for k, v in (metrics or {}).items() if k.startswith("loss/") or k == "gradient_norm"}
            losses = {k: float(v) for k, v in told.items()}
            worst = ", ".join(f"{k}={v:g}" for k, v in losses.items() if v != v or abs(v) == float("inf"))
            raise NaNLoss(
                f"the loss or its gradient is not finite at update {self.optimiser.updates} "
                f"({worst or 'see metrics.jsonl'}). The last snapshot is from before; resume from it with a "
                f"lower agent.lr (allow_config_change=[agent.lr]) or in float32 (trainer.precision=float32)"
            )

    def state_dict(self) -> dict:
        """Optimiser moments by parameter name, counters and random state: tensors and JSON values."""
        moments = {}
        for name, p in self.agent.trained():
            for key, value in self.optimiser.state[p].items():
                moments[f"{key}.{name}"] = value
        return {"moments": moments, "updates": self.optimiser.updates, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping) -> None:
        with torch.no_grad():
            for name, p in self.agent.trained():
                for key, value in self.optimiser.state[p].items():
                    value.copy_(state["moments"][f"{key}.{name}"])
        self.optimiser.updates = int(state["updates"])
        self.generator.set_state(state["generator"])
