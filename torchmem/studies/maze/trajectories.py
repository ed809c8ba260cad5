"""Sets of Memory Maze trajectories in the published offline format: one npz file each (README of jurgisp/memory-maze).

    image        (T + 1, 64, 64, 3) uint8       targets_pos  (T + 1, N, 2)   cells, (0, 0) at the bottom left
    action       (T + 1, 6) one-hot, the last   targets_vec  (T + 1, N, 2)   cells to the right and ahead of the agent
    reward       (T + 1,) the last              target_pos, target_vec (T + 1, 2), of the ball that pays
    maze_layout  (T + 1, S, S) 1 = free         target_color (T + 1, 3) RGB
    agent_pos    (T + 1, 2) cells               agent_dir    (T + 1, 2) unit vector

image[0] is seen before the first action, image[T] after the last. A set is a folder with train/ and eval/, or a plain
folder of files. Other keys in a file are let be; files are read without pickle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from torchmem.envs.maze_walker import ACTIONS
from torchmem.errors import TorchmemError
from torchmem.files import atomic_write

log = logging.getLogger("torchmem")

# key -> axes after time: a number is a size, a letter a size that is the same wherever it stands
FORM: dict[str, tuple[int | str, ...]] = {
    "image": (64, 64, 3), "action": (ACTIONS,), "reward": (), "maze_layout": ("S", "S"), "agent_pos": (2,),
    "agent_dir": (2,), "targets_pos": ("N", 2), "targets_vec": ("N", 2), "target_pos": (2,), "target_vec": (2,),
    "target_color": (3,),
}  # fmt: skip
# what the benchmark reads of them
NEEDED = ("image", "action", "reward", "maze_layout", "agent_pos", "agent_dir", "targets_vec")


class MazeSetError(TorchmemError, ValueError):
    """A set or a file of it cannot be used; the message names file and key."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One file, with what the benchmark reads. L = T + 1 steps, S cells a side, N balls.

    image (L, 64, 64, 3) uint8. action (L,) int64: the one taken *after* this step's image, 0 (noop) at the last.
    reward (L,) float32: that came with the image. layout (S, S) bool, True = free. pos, dir (L, 2), vec (L, N, 2)
    float32.
    """

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    layout: np.ndarray
    pos: np.ndarray
    dir: np.ndarray
    vec: np.ndarray


class MazeSet:
    """Files of a split, in the order of their names; each is read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Trajectory:
        return read(self.files[i])

    def __iter__(self) -> Iterator[Trajectory]:
        return (read(file) for file in self.files)

    def layouts(self) -> list[str]:
        """One digest of walls and balls' places per file: trajectories of one maze have the same."""
        return [_digest(file) for file in self.files]


def open_set(folder: str | Path, held_out: float = 0.1) -> tuple[MazeSet, MazeSet]:
    """Training and evaluation trajectories that share no maze.

    A folder with train/ and eval/ keeps its split; from a plain one the last `held_out` of the mazes are taken for
    evaluation. Evaluation files whose maze also stands in training are left out, and that is logged.
    Raises MazeSetError where there is nothing to read or a split is empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MazeSetError(f"{folder} is no folder: give one with trajectories (.npz), as `torchmem collect` makes it")
    parts = [sorted((folder / name).glob("*.npz")) for name in ("train", "eval")]
    if not any(parts):
        files = sorted(folder.glob("*.npz"))
        mazes = {file: _digest(file) for file in files}
        order = sorted(set(mazes.values()))
        last = set(order[len(order) - round(held_out * len(order)) :])
        parts = [[f for f in files if mazes[f] not in last], [f for f in files if mazes[f] in last]]
    train, held = (MazeSet(part) for part in parts)
    known = set(train.layouts())
    fresh = [file for file, maze in zip(held.files, held.layouts(), strict=True) if maze not in known]
    if len(fresh) < len(held):
        log.warning("%d of %d evaluation trajectories are left out: their mazes are among the training ones",
                    len(held) - len(fresh), len(held))  # fmt: skip
    if not len(train) or not fresh:
        raise MazeSetError(
            f"{folder} has {len(train)} training trajectories and {len(fresh)} in other mazes: both are needed "
            f"(files *.npz in train/ and eval/; `torchmem collect {folder}` makes some)"
        )
    return train, MazeSet(fresh)


def read(file: Path) -> Trajectory:
    """One trajectory. Raises MazeSetError naming the file and the key that is missing or has another form."""
    found = _load(file, NEEDED)
    sizes: dict[str, int] = {"L": len(found["image"])}
    for key, value in found.items():
        _check(file, key, value, sizes)
    taken = found["action"].argmax(-1).astype(np.int64)  # row t: the action before image t
    return Trajectory(
        image=found["image"], action=np.append(taken[1:], 0), reward=found["reward"].astype(np.float32),
        layout=found["maze_layout"][0].astype(bool), pos=found["agent_pos"].astype(np.float32),
        dir=found["agent_dir"].astype(np.float32), vec=found["targets_vec"].astype(np.float32),
    )  # fmt: skip


def write(file: Path, arrays: dict[str, np.ndarray]) -> Path:
    """One trajectory, all keys of FORM. Raises MazeSetError for a missing key or another form, OSError."""
    if lacking := [key for key in FORM if key not in arrays]:
        raise MazeSetError(f"{file}: a trajectory needs {lacking[0]}")
    sizes = {"L": len(arrays["image"])}
    for key in FORM:
        _check(file, key, arrays[key], sizes)

    def put(path: Path) -> None:
        with open(path, "wb") as out:  # a name without .npz would get one
            np.savez_compressed(out, allow_pickle=False, **{key: arrays[key] for key in FORM})

    return atomic_write(file, put)


def _load(file: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as stored:
            if lacking := [key for key in keys if key not in stored]:
                raise MazeSetError(f"{file} has no {lacking[0]}; it has {', '.join(stored)}")
            return {key: stored[key] for key in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, MazeSetError):
            raise
        raise MazeSetError(f"{file} cannot be read ({error}): take it away or make it again") from error


def _check(file: Path, key: str, value: np.ndarray, sizes: dict[str, int]) -> None:
    wanted = ("L", *FORM[key])
    fits = value.ndim == len(wanted) and all(
        have == (want if isinstance(want, int) else sizes.setdefault(want, have))
        for have, want in zip(value.shape, wanted, strict=True)
    )
    if not fits:
        form = ", ".join(str(w if isinstance(w, int) else sizes.get(w, w)) for w in wanted)
        raise MazeSetError(f"{file}: {key} is {value.shape}, expected ({form})")


def _digest(file: Path) -> str:
    found = _load(file, ("maze_layout", "targets_pos"))
    if not len(found["maze_layout"]) or not len(found["targets_pos"]):
        raise MazeSetError(f"{file} holds no step")
    walls, balls = found["maze_layout"][0].astype(bool), np.round(found["targets_pos"][0], 2).astype("<f4")
    return hashlib.sha256(walls.tobytes() + balls.tobytes()).hexdigest()
