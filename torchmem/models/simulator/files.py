"""Simulators in files: the run folder of a trained one, with its frozen agent; or an agent that is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torchmem.models.checkpoint import CARD, CheckpointError, find_agent, load, load_agent, read_card
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.own_world import OwnWorld

FROZEN = "frozen_agent"  # folder of a simulator's run: the agent in its loop


def load_simulator(
    path: str | Path, agent: Any = None, device: torch.device | str = "cpu"
) -> tuple[Any, AgentLoop, Path]:
    """(simulator, agent in its loop, folder of its weights) of a run directory, a snapshot or an agent folder.

    Of a run of `torchmem simulator train`, or of a dreamer or r2i agent, whose own world model then is the simulator.
    agent: another one of the same world, to let it act there; default, the simulator's own. All weights are frozen.

    Raises CheckpointError naming what is missing, ValueError for an agent that does not fit.
    """
    home = find_agent(path)
    if read_card(home)["agent"] != "simulator":
        own = load_agent(home, device)
        loop = AgentLoop(own if agent is None else agent)
        return OwnWorld(own.requires_grad_(False), loop), loop, home  # type: ignore[attr-defined]
    simulator: Any = load_agent(home, device)
    foreign = agent is not None
    loop = AgentLoop(agent if foreign else load(_frozen(home), device))
    simulator.attach(loop, foreign=foreign)
    return simulator.requires_grad_(False), loop, home


def _frozen(home: Path) -> Path:
    """The agent beside a simulator: in the run folder, some way up."""
    for folder in (home, *home.absolute().parents[:4]):
        if (folder / FROZEN / CARD).is_file():
            return folder / FROZEN
    raise CheckpointError(
        f"{home} is a simulator without its agent: load it from its run folder, which holds {FROZEN}, or name an agent"
    )


def weights_of(home: Path) -> str:
    """The hash of the weights in an agent folder."""
    return str(read_card(home)["weights_sha256"])
