"""The compute type is a choice of the run: parameters, their gradients and the optimiser stay float32."""

from __future__ import annotations

import torch

from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.types import EnvSpec, Space

SMALL = {"deter": 16, "hidden": 8, "classes": 4, "depth": 2, "units": 8, "stoch": 4, "blocks": 2, "decoder_blocks": 2}


def gradients(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Gradients of the total loss on one small batch, the same for every dtype up to rounding."""
    torch.manual_seed(0)
    spec = EnvSpec("random", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int64", 3)}, 10.0)
    agent = DreamerAgent(spec, DreamerConfig(**SMALL))
    agent.dtype = dtype
    shape = (2, 4)
    batch = {
        "image": torch.randint(256, (*shape, 64, 64, 3), dtype=torch.uint8),
        "action": torch.randint(3, shape),
        "reward": torch.randn(shape),
        **{key: torch.zeros(shape, dtype=torch.bool) for key in ("is_first", "is_last", "is_terminal")},
        **{key: torch.zeros(*shape, *item) for key, (item, _) in agent.latent_schema().items()},
    }
    agent.loss(batch, agent.training_noise(2, 3, torch.Generator().manual_seed(0))).total.backward()
    missing = [name for name, p in agent.trained() if p.grad is None]
    assert not missing
    return {name: p.grad for name, p in agent.trained()}


def test_every_parameter_learns_in_bfloat16():
    # Imagination, which uses policy and dynamics without gradient, shares its low-precision weights with the losses.
    exact, rounded = gradients(torch.float32), gradients(torch.bfloat16)
    for name, gradient in exact.items():
        if gradient.norm() > 1e-6:  # at the start the critic's zero output and an even policy leave less than rounding
            cosine = torch.cosine_similarity(gradient.flatten(), rounded[name].flatten(), dim=0)
            assert cosine > 0.95, name
    assert all(g.dtype == torch.float32 for g in rounded.values())
