"""Make tests/golden from the recorded arrays of danijar/dreamerv3 @ e3f0224: the same numbers, fewer of them.

    python tests/golden/pack.py SOURCE [DEST] [--full]

SOURCE holds functions.npz, optimizer.npz, img_disc/, vec_mixed/ and ckpt/. Left out, to stay below 7 MB: the state of
the optimiser (zero in params; nowarm/state of optimizer.npz shows it after updates), and of large maps all but every
third pixel (a stride of three meets every parity of an upsampling); such an array is stored as
`name@axis:stride,axis:stride`. --full leaves nothing out; tests read such a folder where TORCHMEM_GOLDEN names it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

MAP = 4_000  # elements from which a map of pixels is thinned out
MAPS = ("forward", "trace", "expected", "bf16")  # files that hold maps; elsewhere four axes are a kernel
SETS = ("img_disc", "vec_mixed")
FILES = ("batch", "forward", "trace", "loss", "grads_total", "grads_per_loss", "params", "train3", "init", "bf16")


def thin(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Every third pixel (every fourth step) of a large (..., H, W, C) map."""
    if array.size < MAP or array.ndim < 4 or array.dtype == np.uint8:
        return name, array
    strides = {array.ndim - 3: 3, array.ndim - 2: 3} | ({1: 4} if array.ndim == 5 else {})
    index = tuple(slice(None, None, strides.get(axis, 1)) for axis in range(array.ndim))
    return name + "@" + ",".join(f"{axis}:{step}" for axis, step in sorted(strides.items())), array[index]


def wanted(file: str, name: str) -> bool:
    if file.endswith("params"):
        return not name.startswith("opt/")
    if file.endswith("train3"):
        return not name.startswith("final/opt/")
    if file.endswith("init"):
        return not name.startswith("jit/")
    return True


def statistics(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Initial parameters as [std, largest magnitude]."""
    return {
        f"stat/{name[6:]}" if name.startswith("param/") else name: np.array([a.std(), np.abs(a).max()], np.float32)
        if name.startswith("param/")
        else a
        for name, a in arrays.items()
    }


def pack(source: Path, dest: Path, full: bool) -> None:
    for file in ("functions", "optimizer", "ckpt/expected", *(f"{s}/{f}" for s in SETS for f in FILES)):
        if not (source / f"{file}.npz").exists():
            continue  # vec_mixed has neither init nor bf16
        arrays = dict(np.load(source / f"{file}.npz"))
        if not full:
            arrays = {name: a for name, a in arrays.items() if wanted(file, name)}
            if file.endswith(MAPS):
                arrays = dict(thin(name, a) for name, a in arrays.items())
        if file.endswith("init"):
            arrays = statistics(arrays)
        (dest / file).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(dest / f"{file}.npz", **arrays)
    for name in SETS:
        config = json.loads((source / name / "batch.json").read_text())["config"]["agent"]
        (dest / name / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    shutil.copytree(source / "ckpt" / "logdir", dest / "ckpt" / "logdir", dirs_exist_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    pack(given.source, given.dest, given.full)
