"""R2I's optimisers as one: Adam in groups, each with its own rate and limit on the norm of its whole gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from torchmem.models.r2i.config import R2IConfig

SSM = ("lambda_re", "lambda_im", "b", "c", "d", "log_step")  # each kind, over all layers, is a group of its own


def group_of(name: str) -> str:
    """The group of a parameter: actor, critic, ssm.<kind> or world."""
    if name.startswith("behaviour."):
        return "actor" if name.startswith("behaviour.policy.") else "critic"
    home, _, kind = name.rpartition(".")
    return f"ssm.{kind}" if home.endswith(".s5") and kind in SSM else "world"


class GroupedAdam(torch.optim.Optimizer):
    """Clip each group by its global norm, then Adam, then decoupled decay of the world model's weights.

    State per parameter: nu, mu; `updates` counts all calls. `gradient_norm`: of all gradients, before clipping.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], config: R2IConfig) -> None:
        c = self.config = config
        ssm = (c.lr if c.ssm_lr is None else c.ssm_lr, c.clip, c.eps)
        settings = {
            "world": (c.lr, c.clip, c.eps),
            "actor": (c.actor_lr, c.actor_clip, c.behaviour_eps),
            "critic": (c.critic_lr, c.critic_clip, c.behaviour_eps),
        }
        members: dict[str, list[tuple[str, Tensor]]] = {}
        for name, p in named:
            members.setdefault(group_of(name), []).append((name, p))
        groups = []
        for name, items in members.items():
            lr, clip, eps = settings.get(name, ssm)
            decay = [c.weight_decay if name == "world" and n.endswith("weight") else 0.0 for n, _ in items]
            params = [p for _, p in items]
            groups.append({"name": name, "params": params, "lr": lr, "clip": clip, "eps": eps, "decay": decay})
        super().__init__(groups, {})
        self.updates = 0
        self.gradient_norm = torch.zeros(())
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"nu": torch.zeros_like(p), "mu": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter; raises RuntimeError if a trained parameter has no gradient."""
        c = self.config
        self.updates += 1
        fixes = (1 - c.beta1**self.updates, 1 - c.beta2**self.updates)
        warm = min(1.0, (self.updates - 1) / c.warmup) if c.warmup else 1.0
        squares = []
        for group in self.param_groups:
            params = group["params"]
            grads = [p.grad for p in params]
            if any(g is None for g in grads):
                raise RuntimeError("a trained parameter has no gradient; every loss must reach its module")
            norm = torch.stack(torch._foreach_norm(grads)).double().square().sum().sqrt()
            squares.append(norm.square())
            grads = torch._foreach_mul(grads, (group["clip"] / norm.clamp(min=group["clip"])).to(grads[0].dtype))
            mus, nus = ([self.state[p][key] for p in params] for key in ("mu", "nu"))
            torch._foreach_lerp_(mus, grads, 1 - c.beta1)
            torch._foreach_mul_(nus, c.beta2)
            torch._foreach_addcmul_(nus, grads, grads, 1 - c.beta2)
            scale = torch._foreach_div(nus, fixes[1])
            torch._foreach_sqrt_(scale)
            torch._foreach_add_(scale, group["eps"])
            step = torch._foreach_div(mus, fixes[0])
            torch._foreach_div_(step, scale)
            if any(group["decay"]):
                torch._foreach_add_(step, torch._foreach_mul(params, group["decay"]))
            torch._foreach_add_(params, step, alpha=-group["lr"] * warm)
        self.gradient_norm = torch.stack(squares).sum().sqrt()
