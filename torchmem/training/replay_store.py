"""Steps on disk: one memory-mapped file per key, laid out (envs, rows, ...), opened with tensordict.

A cell is one step of one env; cell number = env * rows + row. So a sequence of an env is one piece of the file, which
a disk reads twice as fast as scattered steps, or four times with `prefetch` (benchmarks/replay.py). The files are an
ordinary memory-mapped TensorDict: `TensorDict.load_memmap(folder)` opens them without torchmem.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from torchmem.training.replay_size import Schema, estimate, free_bytes, readable, torch_dtype

PREFETCH_BYTES = 1024  # keys narrower than this have whole batches on a few pages


class Store:
    """Fixed-size array of cells, read and written by cell number. Knows nothing of time, rings or undo."""

    def __init__(self, folder: Path, schema: Schema, rows: int, n: int) -> None:
        """Open the files in `folder`, which `create` made. Raises ValueError where they are not of this schema."""
        self.rows, self.n, self.cells = rows, n, rows * n
        self.shapes = {key: tuple(shape) for key, (shape, _) in schema.items()}
        self.dtypes = {key: torch_dtype(dtype) for key, (_, dtype) in schema.items()}
        for key, shape in self.shapes.items():
            file, size = folder / f"{key}.memmap", math.prod((self.cells, *shape)) * self.dtypes[key].itemsize
            found = file.stat().st_size if file.is_file() else 0
            if found != size:  # load_memmap would stretch it with zeros, without a word
                dtype = self.dtypes[key]
                raise ValueError(f"{file} does not hold {(n, rows, *shape)} {dtype}: {found} bytes in place of {size}")
        tensors = TensorDict.load_memmap(folder)
        # Bytes, because a gather or a copy of rows is the same for every dtype, and numpy does it fastest
        # (torch.index_copy_ takes 10 ms where numpy takes 0.6 ms for 16 x 65 images, benchmarks/replay.py).
        self._bytes: dict[str, np.ndarray] = {}
        self._files: dict[str, int] = {}
        for key, shape in self.shapes.items():
            tensor = tensors.get(key, None)
            if tensor is None or tensor.shape != (n, rows, *shape) or tensor.dtype != self.dtypes[key]:
                raise ValueError(f"{folder} does not hold {key!r} as {(n, rows, *shape)} {self.dtypes[key]}")
            plain = tensor.as_subclass(torch.Tensor).view(self.cells, -1)
            self._bytes[key] = plain.view(torch.uint8).numpy()
            self._files[key] = os.open(folder / f"{key}.memmap", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._files[key])
        self._wide = [key for key, cells in self._bytes.items() if cells.shape[1] >= PREFETCH_BYTES]

    @classmethod
    def create(cls, folder: Path, schema: Schema, rows: int, n: int) -> Store:
        """Make and preallocate the files.

        Raises OSError with the numbers where the disk is too small: now, not after a day of training.
        """
        need, free = estimate(schema, rows * n), free_bytes(folder)
        if need > free:
            raise OSError(
                f"a replay of {rows * n} steps needs {readable(need)} in {folder}, where {readable(free)} are free; "
                f"set replay.capacity to {int(free / 2 / need * rows * n)} or less, or replay.directory to another disk"
            )
        tensors = TensorDict({}, batch_size=[n, rows]).memmap_(str(folder))
        for key, (shape, dtype) in schema.items():
            tensors.make_memmap(key, torch.Size((n, rows, *shape)), dtype=torch_dtype(dtype))
            # A sparse file would run out of disk in the middle of a run, as a SIGBUS in a memory write.
            with open(folder / f"{key}.memmap", "r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), 0, math.prod((n, rows, *shape)) * torch_dtype(dtype).itemsize)
                except OSError as error:
                    raise OSError(
                        error.errno, f"could not reserve {readable(need)} for the replay in {folder}: {error.strerror}"
                    ) from error
        return cls(folder, schema, rows, n)

    def encode(self, key: str, value: np.ndarray | torch.Tensor, lead: tuple[int, ...]) -> np.ndarray:
        """`value` of shape (*lead, *shape) as bytes (prod(lead), bytes of a cell).

        Floats of another width are converted; any other difference of shape or dtype raises ValueError.
        """
        if isinstance(value, np.ndarray):  # torch takes neither read-only arrays nor negative strides
            value = np.require(value, requirements=["C", "W"])
        tensor = torch.as_tensor(value)
        dtype = self.dtypes[key]
        if tuple(tensor.shape) != (*lead, *self.shapes[key]):
            raise ValueError(f"{key!r} has shape {tuple(tensor.shape)}, the replay wants {(*lead, *self.shapes[key])}")
        if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
            raise ValueError(f"{key!r} is {tensor.dtype}, the replay holds {dtype}")
        tensor = tensor.detach().to("cpu", dtype).contiguous()
        return tensor.reshape(math.prod(lead), -1).view(torch.uint8).numpy()

    def prefetch(self, cells: np.ndarray) -> None:
        """Tell the kernel which runs of consecutive cells (B, L) are read next, so that the disk fetches them at once.

        Costs nothing measurable where they are in memory already.
        """
        for key in self._wide:
            width = self._bytes[key].shape[1]
            for first, last in zip(cells[:, 0].tolist(), cells[:, -1].tolist(), strict=True):
                # A run over the seam of the ring is two pieces; the one at the front is left to the page faults.
                length = last - first + 1 if last >= first else self.rows - first % self.rows
                os.posix_fadvise(self._files[key], first * width, length * width, os.POSIX_FADV_WILLNEED)

    def gather(self, key: str, cells: np.ndarray, pin: bool = False) -> torch.Tensor:
        """Copy of cells (..., ) int64 of one key: (..., *shape)."""
        source = self._bytes[key]
        out = torch.empty((cells.size, source.shape[1]), dtype=torch.uint8, pin_memory=pin)
        # mode="clip" skips numpy's second, buffered copy; cell numbers are in range by construction.
        np.take(source, cells.reshape(-1), axis=0, out=out.numpy(), mode="clip")
        return out.view(self.dtypes[key]).view(*cells.shape, *self.shapes[key])

    def scatter(self, key: str, cells: np.ndarray, content: np.ndarray) -> None:
        """Overwrite cells with bytes (cells, bytes of a cell); the last of equal cell numbers wins."""
        self._bytes[key][cells] = content

    def pack(self, keys: Sequence[str], cells: np.ndarray) -> list[np.ndarray]:
        """What the cells hold now, one bytes array per key."""
        return [np.take(self._bytes[key], cells, axis=0) for key in keys]

    def unpack(self, keys: Sequence[str], cells: np.ndarray, content: bytes) -> None:
        """Put back what `pack` gave, joined."""
        place = 0
        for key in keys:
            width = self._bytes[key].shape[1]
            block = np.frombuffer(content, np.uint8, cells.size * width, place).reshape(cells.size, width)
            self.scatter(key, cells, block)
            place += block.size

    def sync(self) -> None:
        """Ask the kernel to put everything on the disk."""
        for file in self._files.values():
            os.fsync(file)


def check_schema(schema: Mapping[str, tuple[tuple[int, ...], str]], latents: Sequence[str]) -> None:
    """Raises ValueError for a schema that a replay cannot hold, naming the key."""
    for key, (shape, dtype) in schema.items():
        if not key.replace("_", "a").replace("-", "a").replace(".", "a").isalnum() or key == "index":
            raise ValueError(f"{key!r} cannot be a replay key: letters, digits, '_', '-', '.' only, and not 'index'")
        if math.prod(shape) * torch_dtype(dtype).itemsize == 0:
            raise ValueError(f"replay key {key!r} of shape {tuple(shape)} holds nothing")
    for key in ("is_first", "is_last"):
        if key not in schema or tuple(schema[key][0]) != () or schema[key][1] != "bool":
            raise ValueError(f"a replay schema needs {key!r} as ((), 'bool')")
    missing = [key for key in latents if key not in schema]
    if missing:
        raise ValueError(f"latents {missing} are not in the replay schema {sorted(schema)}")
