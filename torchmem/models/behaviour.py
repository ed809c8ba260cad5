"""Actor and critic: imagined and replayed returns, and the losses on them (spec section 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.heads import PolicyHead, TwoHotHead
from torchmem.models.returns import lambda_return, percentile_range
from torchmem.types import Space


def alone(values: Tensor) -> Tensor:
    """The gather of a process that trains alone."""
    return values


class Behaviour(nn.Module):
    """Policy, value, slow value and the return range. Knows features, not worlds or dynamics."""

    return_low: Tensor
    return_high: Tensor

    def __init__(self, feat: int, actions: Mapping[str, Space], config: DreamerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.policy = PolicyHead(feat, actions, c)
        self.value = TwoHotHead(feat, c.units, c.value_layers, c.bins)
        self.slow_value = TwoHotHead(feat, c.units, c.value_layers, c.bins)
        self.slow_value.load_state_dict(self.value.state_dict())
        self.slow_value.requires_grad_(False)
        self.register_buffer("return_low", torch.zeros(()))
        self.register_buffer("return_high", torch.zeros(()))
        self.gather: Callable[[Tensor], Tensor] = alone  # set by the learner where several processes train together

    def imagination_loss(
        self, feat: Tensor, action: Mapping[str, Tensor], reward: Tensor, cont: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Losses on imagined trajectories.

        feat (N, H + 1, F) without gradient, action[key] (N, H + 1, ...), reward (N, H + 1), cont (N, H + 1)
        probabilities. Returns losses {policy, value} (N, H), returns (N, H), metrics, and the new return range.
        """
        c = self.config
        params = self.policy(feat)
        value_logits = self.value(feat)
        value = self.value.mean(value_logits.detach())
        with torch.no_grad():
            slow = self.slow_value.mean(self.slow_value(feat))
            discount = 1.0 if c.contdisc else 1 - 1 / c.horizon
            weight = torch.cumprod(discount * cont, 1) / discount
            returns = lambda_return(reward, discount * cont, value, c.lam)
            low, high = percentile_range(self.gather(returns), c.return_low, c.return_high)
            low = torch.lerp(self.return_low, low, c.return_rate)
            high = torch.lerp(self.return_high, high, c.return_rate)
            scale = (high - low).clamp(min=c.return_limit)
            advantage = (returns - value[:, :-1]) / scale
        logp = self.policy.logp(params, action)[:, :-1]
        entropy = {k: e[:, :-1] for k, e in self.policy.entropy(params).items()}
        bonus = sum(entropy.values())
        losses = {
            "policy": weight[:, :-1] * -(logp * advantage + c.entropy * bonus),
            "value": weight[:, :-1] * self._value_loss(value_logits[:, :-1], returns, slow[:, :-1]),
        }
        metrics = {
            "adv": advantage.mean(),
            "adv_std": advantage.std(correction=0),
            "adv_mag": advantage.abs().mean(),
            "ret": (returns.mean() - low) / scale,
            "ret_min": (returns.min() - low) / scale,
            "ret_max": (returns.max() - low) / scale,
            "ret_rate": (((returns - low) / scale).abs() >= 1.0).float().mean(),
            "ret_scale": scale,
            "rew": reward.mean(),
            "con": cont.mean(),
            "val": value.mean(),
            "slowval": slow.mean(),
            "weight": weight.mean(),
            "tar": returns.mean(),
            **{f"ent/{k}": e.mean().detach() for k, e in entropy.items()},
        }
        return losses, returns, metrics, {"return_low": low, "return_high": high}

    def replay_loss(
        self, feat: Tensor, reward: Tensor, last: Tensor, terminal: Tensor, boot: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Value loss on replayed rewards, (B, T - 1), and its returns.

        feat (B, T, F): with gradient where the loss shall train the world model. boot (B, T): imagined return of each
        step. All others (B, T).
        """
        c = self.config
        live = (1 - terminal.float()) * (1 - 1 / c.horizon)
        returns = lambda_return(reward, live, boot, c.replay_lam, last)
        logits = self.value(feat)[:, :-1]
        with torch.no_grad():
            slow = self.slow_value.mean(self.slow_value(feat.detach()))[:, :-1]
        weight = (~last[:, :-1]).float()
        return weight * self._value_loss(logits, returns, slow), returns

    def _value_loss(self, logits: Tensor, target: Tensor, slow: Tensor) -> Tensor:
        return self.value.loss(logits, target) + self.config.slow_reg * self.value.loss(logits, slow)

    @torch.no_grad()
    def commit(self, state: Mapping[str, Tensor]) -> None:
        """Take over the new return range and move the slow critic; call once after each optimiser step."""
        for name, value in state.items():
            getattr(self, name).copy_(value)
        slow: list[Tensor] = [*self.slow_value.parameters()]
        fast: list[Tensor] = [*self.value.parameters()]
        torch._foreach_lerp_(slow, fast, self.config.slow_rate)
