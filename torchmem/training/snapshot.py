"""Snapshots of a whole run under one id: everything, or nothing.

    <logdir>/ckpt/<id>/agent/             weights, config, world (models/checkpoint.py); loadable alone
    <logdir>/ckpt/<id>/shared.*           optimiser, counters, the log's watermark
    <logdir>/ckpt/<id>/rank<r>.*          of each process: random states, worlds, carry, replay watermark, open write-back
    <logdir>/ckpt/latest                  the id; renamed into place last, which is the moment the snapshot exists
    <logdir>/ladder/<agent steps>/        agents kept for ever, where save.ladder asks for them
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmem.files import atomic_write, sync_folder
from torchmem.models.checkpoint import load_weights, save_agent
from torchmem.training.processes import Processes
from torchmem.training.tree import TornFile, read_tree, write_tree

log = logging.getLogger("torchmem")


class Snapshots:
    """Writes and reads the snapshots of one run folder, all processes together."""

    def __init__(self, logdir: Path, processes: Processes, keep: int = 1) -> None:
        self.logdir, self.folder = logdir, logdir / "ckpt"
        self.processes, self.keep = processes, keep

    def latest(self) -> str | None:
        """Id of the newest complete snapshot, or None where there is none. Raises TornFile where its folder is gone."""
        pointer = self.folder / "latest"
        if not pointer.is_file():
            return None
        name = pointer.read_text().strip()
        if not name or not (self.folder / name).is_dir():
            raise TornFile(f"{pointer} names {name!r}, which is no snapshot beside it; name one of {self._all()} in it")
        return name

    def write(self, agent, updates: int, agent_steps: int, shared: Mapping, own: Mapping) -> str:
        """Save all parts, then make them the newest. Raises OSError on a full disk, with the old snapshot still valid."""
        name = f"{agent_steps:012d}-{updates:09d}"
        place = self.folder / name
        if self.processes.main:
            self._clear(name)
            place.mkdir(parents=True)
        self.processes.barrier()
        try:
            write_tree(place, f"rank{self.processes.rank}", dict(own))
            if self.processes.main:
                save_agent(agent, place / "agent")
                write_tree(place, "shared", dict(shared))
        except OSError:
            if self.processes.main:
                shutil.rmtree(place, ignore_errors=True)
            raise
        self.processes.barrier()
        if self.processes.main:
            sync_folder(place)
            sync_folder(self.folder)
            atomic_write(self.folder / "latest", name + "\n")
        self.processes.barrier()
        return name

    def prune(self) -> None:
        """Drop what is older than the `keep` newest; call once nothing needs the older ones."""
        if self.processes.main:
            for name in self._all()[: -self.keep]:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def read(self, name: str, agent) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights into `agent`; returns (shared, own). Raises TornFile or CheckpointError naming the file."""
        place = self.folder / name
        load_weights(agent, place / "agent")
        return read_tree(place, "shared"), read_tree(place, f"rank{self.processes.rank}")

    def ladder(self, agent, agent_steps: int) -> None:
        """Keep a copy of the agent for ever."""
        place = self.logdir / "ladder" / f"{agent_steps:012d}"
        if self.processes.main and not place.exists():
            save_agent(agent, place)

    def _all(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    def _clear(self, name: str) -> None:
        """Remove what a crash left half-written under this id."""
        if name == self.latest():
            raise FileExistsError(f"snapshot {name} exists already")
        shutil.rmtree(self.folder / name, ignore_errors=True)
