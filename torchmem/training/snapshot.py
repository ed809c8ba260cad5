"""Snapshots of a whole run under one id: everything, or nothing.

    <logdir>/ckpt/<id>/agent/             weights, config, world (models/checkpoint.py); loadable alone
    <logdir>/ckpt/<id>/shared.*           optimiser, counters, the log's watermark
    <logdir>/ckpt/<id>/rank<r>.*          of each process: random states, worlds, carry, replay mark, open write-back
    <logdir>/ckpt/latest                  the id; renamed into place last, which is the moment the snapshot exists
    <logdir>/ladder/<agent steps>/        agents kept for ever, where save.ladder or save.agents_every asks
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchmem.files import atomic_write, sync_folder
from torchmem.models.checkpoint import CheckpointError, WrongAgent, load_weights, save_agent
from torchmem.training.processes import LostProcess, Processes
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
        """Save all parts, then make them the newest. Raises OSError on a full disk, with the old one still whole."""
        name = f"{agent_steps:012d}-{updates:09d}"
        place, main = self.folder / name, self.processes.main

        def begin() -> None:
            if main:
                self._clear(name)
                place.mkdir(parents=True)

        def fill() -> None:
            write_tree(place, f"rank{self.processes.rank}", dict(own))
            if main:
                save_agent(agent, place / "agent")
                write_tree(place, "shared", dict(shared))
                sync_folder(place)
                sync_folder(self.folder)

        def publish() -> None:
            if main:
                atomic_write(self.folder / "latest", name + "\n")

        for phase in (begin, fill, publish):
            self._together(phase, name)
        return name

    def _together(self, phase: Callable[[], None], name: str) -> None:
        """Do one part of a snapshot in all processes; where one fails all of them fail, and nothing is left behind."""
        fault: OSError | None = None
        try:
            phase()
        except OSError as error:
            fault = error
        if not self.processes.any(fault is not None):
            return
        last = self.latest()
        if self.processes.main and last != name:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if fault is None:
            raise LostProcess(f"snapshot {name} failed in another process, see its message")
        what = f"the last one, {last}, is whole" if last else "there is none before it"
        raise OSError(
            fault.errno,
            f"could not save snapshot {name} ({fault.strerror or fault}): {what}. Make room for it on the disk of "
            f"{self.folder}, then start the same command again",
        ) from fault

    def prune(self) -> None:
        """Drop what is older than the `keep` newest; call once nothing needs the older ones."""
        if self.processes.main:
            for name in self._all()[: -self.keep]:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def discard_after(self, name: str | None) -> None:
        """Drop what is newer than the snapshot a run goes on from (None: it starts anew).

        A crash left it half-written, or the user went back. Were it to stay, `prune` would take it for the newest.
        """
        if self.processes.main and self.folder.is_dir():
            for other in self._all():
                if name is None or other > name:
                    shutil.rmtree(self.folder / other, ignore_errors=True)

    def read(self, name: str, agent) -> tuple[dict[str, Any], dict[str, Any]]:
        """Weights into `agent`; returns (shared, own). Raises TornFile (the file, the way out) or WrongAgent."""
        place = self.folder / name
        try:
            load_weights(agent, place / "agent")
            return read_tree(place, "shared"), read_tree(place, f"rank{self.processes.rank}")
        except WrongAgent:
            raise
        except (TornFile, CheckpointError) as error:
            older = [other for other in self._all() if other < name]
            way = f"to go on from the one before: echo {older[-1]} > {self.folder / 'latest'}" if older else (
                "there is no older one (save.keep=2 would keep it): start anew with another logdir="
            )
            raise TornFile(f"{error}\nSnapshot {name} cannot be resumed; {way}") from error

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
