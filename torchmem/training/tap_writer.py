"""Activations collected while training, as one npz file per chosen update: <logdir>/taps/000000000100.npz."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchmem.files import atomic_write
from torchmem.models.fused import widen


class TapWriter:
    """Writes the taps of every `every`-th update, with what the sequences held: rewards, flags and actions.

    Arrays are (B, T, ...), float32 or the type of the batch; keys are site names, and "batch/<key>" for the batch. A
    resumed run writes the files since its snapshot again.
    """

    def __init__(self, folder: Path, every: int, keys: Iterable[str]) -> None:
        self.folder, self.every, self.keys = folder, every, tuple(keys)

    def push(self, update: int, taps: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Path | None:
        """Write the file of this update if it is due. batch[key] (B, 1 + T, ...), its context step is left out.

        Raises OSError on a full disk.
        """
        if update % self.every:
            return None
        arrays = {name: array(value) for name, value in taps.items()}
        arrays |= {f"batch/{key}": array(batch[key][:, 1:]) for key in self.keys}

        def save(path: Path) -> None:
            with open(path, "wb") as file:  # np.savez appends .npz to names, not to files
                np.savez(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]

        return atomic_write(self.folder / f"{update:012d}.npz", save)


def array(value: Tensor) -> np.ndarray:
    """A tensor as numpy has it: half precision becomes float32."""
    value = value.detach()
    return (widen(value) if value.dtype in (torch.bfloat16, torch.float16) else value).cpu().numpy()
