"""An agent's expectations as a film: play, then look what its world model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torchmem.envs.collector import Collector, leaking
from torchmem.envs.vector import VectorEnv
from torchmem.files import atomic_write
from torchmem.surgery.items import TraceError
from torchmem.video import gif_bytes


def film(model: Any, out: str | Path, steps: int, rows: int, seed: int) -> Path:
    """See Model.video."""
    agent, spec = model.agent, model.spec
    if not hasattr(agent, "open_loop"):
        raise TraceError(f"a {agent.config.name} agent has no world model to look into")
    if model.edits:
        raise TraceError("the open-loop pass does not follow edits: leave `model.edited` first")
    generator = torch.Generator(agent.device).manual_seed(seed)
    with VectorEnv(spec.name, spec.kwargs, rows, split="record", seed=seed, on_error="raise") as worlds:
        collector = Collector(leaking(worlds, spec), agent.initial(rows), agent.device)

        def policy(obs: Any, carry: Any) -> Any:
            return agent.policy(obs, carry, agent.acting_noise(rows, generator))

        played = [collector.step(policy) for _ in range(steps + 1)]
    batch = {key: torch.stack([torch.as_tensor(step[key]) for step in played], 1).to(agent.device) for key in played[0]}
    return atomic_write(Path(out), gif_bytes(agent.open_loop(batch), spec.control_hz))
