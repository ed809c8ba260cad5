"""Tape: the last steps of n lock-step worlds in memory, from which finished episodes are cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from torchmem.recording import RecordingError

BLOCK = 64  # lock-steps; one copy per value and step, one transfer from the device per value and block


class Tape:
    """Values of every step, (n, ...), by name, kept in blocks (n, BLOCK, ...) until nobody needs them.

    dtypes: name -> dtype in which a tensor is kept; others keep their own. A bfloat16 value is cut as uint16, its bits.
    """

    def __init__(self, dtypes: Mapping[str, torch.dtype]) -> None:
        self._dtypes = dtypes
        self._sealed: dict[int, dict[str, np.ndarray]] = {}  # number of the block -> its values
        self._open: dict[str, Tensor | np.ndarray] = {}
        self._behind: dict[int, dict[str, Tensor | np.ndarray]] = {}  # blocks whose memory `_sealed` shows
        self._spare: list[dict[str, Tensor | np.ndarray]] = []  # blocks to use again: fresh memory is slow
        self._reused: dict[str, Tensor | np.ndarray] = {}  # of the block in progress
        self._filled: set[str] = set()  # names put in this step
        self.step = 0  # lock-steps taken

    @property
    def sealed_to(self) -> int:
        """Steps before this one can be cut."""
        return self.step // BLOCK * BLOCK if self._open else self.step

    def put(self, name: str, value: Tensor | np.ndarray) -> bool:
        """The value of the step in progress. The first one of a name in a step counts; False for later ones."""
        if name in self._filled:
            return False
        self._filled.add(name)
        block = self._open.get(name)
        if block is None:
            block = self._reused.pop(name, None)
        if block is None:
            shape = (len(value), BLOCK, *value.shape[1:])
            if isinstance(value, Tensor):
                block = torch.empty(shape, dtype=self._dtypes.get(name, value.dtype), device=value.device)
            else:
                block = np.empty(shape, value.dtype)
        self._open[name] = block
        if isinstance(block, Tensor):
            block[:, self.step % BLOCK].copy_(torch.as_tensor(value))
        else:
            block[:, self.step % BLOCK] = value
        return True

    def advance(self) -> bool:
        """End the step. True where this sealed a block. Raises RecordingError for a value that this step lacks."""
        if missing := sorted(self._open.keys() - self._filled):
            raise RecordingError(f"step {self.step} has no value of {missing[0]}, which earlier steps had")
        self._filled.clear()
        self.step += 1
        if self.step % BLOCK:
            return False
        self.seal()
        return True

    def seal(self) -> None:
        """Make all steps so far ready to be cut; after a call in the middle of a block the tape takes no more steps."""
        if self._open:
            number = (self.step - 1) // BLOCK
            self._sealed[number] = {name: _numpy(block) for name, block in self._open.items()}
            self._behind[number] = self._open
            self._open = {}
            self._reused = self._spare.pop() if self._spare else {}

    def add(self, name: str, values: Tensor) -> None:
        """A value of all steps of the block that was sealed last, (n, steps, ...)."""
        kept = values.to(self._dtypes.get(name, values.dtype)).contiguous()
        self._sealed[(self.step - 1) // BLOCK][name] = _numpy(kept)

    def cut(self, row: int, start: int, stop: int) -> dict[str, list[np.ndarray]]:
        """The steps start to stop - 1 of one world: name -> pieces (T_i, ...), views that hold until `forget`."""
        pieces: dict[str, list[np.ndarray]] = {}
        for number in range(start // BLOCK, (stop - 1) // BLOCK + 1):
            first = number * BLOCK
            inside = slice(max(start - first, 0), min(stop - first, BLOCK))
            for name, block in self._sealed[number].items():
                pieces.setdefault(name, []).append(block[row, inside])
        return pieces

    def forget(self, before: int) -> None:
        """Let go of blocks that end before a step."""
        for number in [n for n in self._sealed if (n + 1) * BLOCK <= before]:
            del self._sealed[number]
            self._spare.append(self._behind.pop(number))


def _numpy(block: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(block, np.ndarray):
        return block
    if block.dtype == torch.bfloat16:
        return block.view(torch.int16).cpu().numpy().view(np.uint16)
    return block.cpu().numpy()
