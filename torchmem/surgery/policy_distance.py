"""How far the policy of an agent with other weights is from its own, on sequences that are forced upon both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from torchmem.models.noise import Noise
from torchmem.types import Space

Policy = dict[str, tuple[Tensor, ...]]  # action key -> parameters, (B, T, ...)


@contextmanager
def substituted(tree: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """`tree` computes with `weights` (by parameter name) inside the block; the Parameter objects themselves come back.

    Also where one Parameter sits in several modules, and in torch's recurrent modules, which keep a list of their own.
    """
    found = dict(tree.named_parameters())
    ours = {id(found[name]): value for name, value in weights.items()}
    taken: list[tuple[nn.Module, str, nn.Parameter]] = [
        (module, key, parameter)
        for module in tree.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in ours
    ]
    try:
        for module, key, parameter in taken:
            _put(module, key, ours[id(parameter)])
        yield
    finally:
        for module, key, parameter in taken:
            _put(module, key, parameter)


def _put(module: nn.Module, key: str, weight: Tensor) -> None:
    module._parameters[key] = weight  # type: ignore[assignment]
    if isinstance(module, nn.RNNBase):
        module._flat_weights[module._flat_weights_names.index(key)] = weight  # type: ignore[call-overload]


@dataclasses.dataclass
class Bed:
    """Sequences to compare policies on. Every pass forces the same observations, actions, resets, carry and noise."""

    agent: Any  # the module tree
    obs: dict[str, Tensor]  # (B, T, ...)
    actions: dict[str, Tensor]  # (B, T, ...)
    is_first: Tensor  # (B, T) bool
    weights: Tensor  # (B, T), mean 1: what each step counts
    carry: Any  # before step 0
    noise: Noise | None  # None: the mode
    own: dict[str, Tensor]  # the agent's parameters, detached
    full: Policy = dataclasses.field(default_factory=dict)  # the one to compare with: under them, without gradient

    @classmethod
    def of(
        cls,
        agent: Any,
        batch: Mapping[str, Tensor],
        weights: Tensor | None = None,
        carry: Any = None,
        noise: Noise | None = None,
    ) -> Bed:
        """batch: every observation key, every action key and `is_first`, each (B, T, ...). weights (B, T) are scaled
        to mean 1. carry, noise: as `Agent.unroll` takes them (default: empty, mode). Raises ValueError.
        """
        spec = agent.spec
        needs = [*spec.obs, *spec.action, "is_first"]
        missing = [key for key in needs if key not in batch]
        if missing:
            raise ValueError(f"batch has no {missing[0]!r}: it needs {needs}, each (B, T, ...)")
        is_first = batch["is_first"].to(agent.device)
        weights = torch.ones(is_first.shape) if weights is None else weights.detach().float()
        if weights.shape != is_first.shape or (weights < 0).any() or not weights.sum() > 0:
            raise ValueError(
                f"weights must be (B, T) = {tuple(is_first.shape)}, none below 0 and not all 0; "
                f"got {tuple(weights.shape)}"
            )
        bed = cls(
            agent,
            {key: batch[key].to(agent.device) for key in spec.obs},
            {key: batch[key].to(agent.device) for key in spec.action},
            is_first,
            (weights / weights.mean()).to(agent.device),
            agent.initial(len(is_first)) if carry is None else carry,
            noise,
            {name: p.detach() for name, p in agent.named_parameters()},
        )
        with torch.no_grad():
            bed.full = bed.policy({})
        return bed

    def some(self, count: int, generator: torch.Generator) -> Bed:
        """A bed of `count` rows drawn without replacement, without the steps after the last that counts; itself where
        it has no more rows."""
        if count >= len(self.is_first):
            return self
        pick = torch.randperm(len(self.is_first), generator=generator)[:count].to(self.is_first.device)
        length = int((self.weights[pick] > 0).any(0).nonzero().max()) + 1 if self.weights[pick].any() else 1
        parts = {
            name: _rows_of(getattr(self, name), pick, length) for name in ("obs", "actions", "is_first", "full")
        }
        parts["weights"] = self.weights[pick, :length] * (length / self.weights.shape[1])  # a mean over fewer steps
        noise = None if self.noise is None else Noise(*(_rows_of(v, pick, length) for v in vars(self.noise).values()))
        return dataclasses.replace(self, noise=noise, carry=_rows_of(self.carry, pick), **parts)

    def policy(self, weights: Mapping[str, Tensor], is_first: Tensor | None = None) -> Policy:
        """The policy where `weights` take the place of the parameters they name; gradients reach `weights` alone."""
        first = self.is_first if is_first is None else is_first
        with substituted(self.agent, {**self.own, **weights}):
            return self.agent.unroll(self.obs, self.actions, first, self.carry, self.noise).policy

    def kl(self, policy: Policy) -> Tensor:
        """Mean over rows and steps of w_t KL(full || policy), in nats."""
        parts = [kl(self.agent.spec.action[k], self.full[k], params) for k, params in policy.items()]
        return (self.weights * torch.stack(parts).sum(0)).mean()

    def agreement(self, policy: Policy) -> float:
        """Weighted share of steps at which every action key has the same greedy action; continuous: within 0.1."""
        same = torch.ones_like(self.is_first)
        for key, params in policy.items():
            mine, theirs = self.full[key][0], params[0]
            if self.agent.spec.action[key].discrete:
                hit = mine.argmax(-1) == theirs.argmax(-1)
            else:
                hit = (mine - theirs).abs() <= 0.1
            same &= hit.flatten(2).all(-1) if hit.dim() > 2 else hit
        return (self.weights * same).mean().item()

    def surprise(self, policy: Policy) -> Tensor:
        """Mean over rows and steps of -w_t log P(the batch's action): a loss whose gradient at the full model is not 0,
        as that of the KL is."""
        total = torch.zeros_like(self.weights)
        for key, params in policy.items():
            taken = self.actions[key]
            if self.agent.spec.action[key].discrete:
                logp = torch.log_softmax(params[0], -1).gather(-1, taken.long().unsqueeze(-1)).squeeze(-1)
            else:
                logp = Normal(params[0], params[1]).log_prob(taken)
            total = total - _per_step(logp)
        return (self.weights * total).mean()


def kl(space: Space, p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
    """KL(p || q) of one action key, summed over its dimensions: (B, T). Logits (B, T, ..., K), or mean and std."""
    if space.discrete:
        logp, logq = (torch.log_softmax(x[0], -1) for x in (p, q))
        return _per_step((logp.exp() * (logp - logq)).sum(-1))
    return _per_step(kl_divergence(Normal(p[0], p[1]), Normal(q[0], q[1])))


def _per_step(value: Tensor) -> Tensor:
    return value.flatten(2).sum(-1) if value.dim() > 2 else value


def _rows_of(value: Any, pick: Tensor, length: int | None = None) -> Any:
    if isinstance(value, Tensor):
        return value[pick] if length is None else value[pick, :length]
    if isinstance(value, Mapping):
        return {key: _rows_of(v, pick, length) for key, v in value.items()}
    if isinstance(value, tuple):
        parts = [_rows_of(v, pick, length) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def acting_path(bed: Bed) -> dict[str, bool]:
    """Every parameter by name, and whether the policy depends on it."""
    leaves = {name: value.clone().requires_grad_() for name, value in bed.own.items()}
    policy = bed.policy(leaves)
    total = torch.stack([p.float().sum() for params in policy.values() for p in params]).sum()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: grad is not None for name, grad in zip(leaves, found, strict=True)}
