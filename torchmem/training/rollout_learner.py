"""Updates on a rollout: minibatches of columns, gradient, all-reduce, clipping, Adam. Knows no world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import PPOAgent
from torchmem.training.learner import NaNLoss
from torchmem.training.processes import Processes


class RolloutLearner:
    """Trains one agent. Several processes: each gives its own columns, gradients are averaged."""

    def __init__(self, agent: PPOAgent, processes: Processes) -> None:
        self.agent, self.processes, self.config = agent, processes, agent.config
        self.parameters = [p for _, p in agent.trained()]
        self.optimiser = torch.optim.Adam(self.parameters, agent.config.lr, eps=agent.config.eps, fused=True)
        self.loss = agent.loss  # or its compiled form
        self.updates = 0
        self.finite = torch.ones((), dtype=torch.bool, device=agent.device)

    def update(self, batch: Mapping[str, Tensor], progress: float = 0.0) -> dict[str, Tensor]:
        """One optimiser step on columns (B, T, ...). progress: share of the run that is done. Returns metrics.

        Raises NaNLoss on a CPU at once; elsewhere `check` does, because looking would wait for the device.
        """
        c = self.config
        metrics: dict[str, Tensor] = {}
        for part in [batch] if c.parts == 1 else cut(batch, c.parts):
            out = self.loss(part, Noise.mode())
            (out.total / c.parts if c.parts > 1 else out.total).backward()
            metrics = {name: metrics.get(name, 0) + value for name, value in out.metrics.items()}
        metrics = {name: value / c.parts for name, value in metrics.items()}
        # kl and total go along: every process must come to the same decision about them.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.processes.average([*gradients, metrics["kl"], metrics["loss/total"]])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, c.clip_norm)
        if c.schedule == "linear":
            for group in self.optimiser.param_groups:
                group["lr"] = c.lr * max(1 - progress, 0.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.updates += 1
        metrics["gradient_norm"] = norm
        self.finite &= torch.isfinite(metrics["loss/total"]) & torch.isfinite(norm)
        if self.finite.device.type == "cpu":
            self.check()
        return metrics

    def moved_far(self, metrics: Mapping[str, Tensor]) -> bool:
        """Whether the policy left the rollout's by more than `target_kl` nats; the same answer in all processes."""
        limit = self.config.target_kl
        return limit is not None and float(metrics["kl"]) > limit

    def check(self) -> None:
        """Raise NaNLoss if any loss or gradient so far was not finite; waits for the device."""
        if not bool(self.finite):
            raise NaNLoss(
                f"the loss or its gradient is not finite at update {self.updates}. The last snapshot is from before; "
                f"resume from it with a lower agent.lr (allow_config_change=[agent.lr])"
            )

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments by parameter name, and the number of updates."""
        moments = {}
        for name, p in self.agent.trained():
            for key, value in self.optimiser.state[p].items():
                moments[f"{key}.{name}"] = value
        return {"moments": moments, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        for name, p in self.agent.trained():
            found = {key: state["moments"].get(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if found["step"] is not None:  # a run saved before its first update has none
                self.optimiser.state[p] = {key: value.to(p.device).clone() for key, value in found.items()}


def cut(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Equal groups of columns, for one pass each."""
    return [
        dict(zip(batch, pieces, strict=True)) for pieces in zip(*(v.tensor_split(parts) for v in batch.values()))
    ]
