"""What the replay costs: sampling at every size, beside TorchRL's SliceSampler, and the choices of layout behind it.

    python benchmarks/replay.py [--parts sizes images peer layout copies] [--folder /tmp] [--max-gb 7]

Every step is really written, by `add`, n = 16 envs in lock-step; batches are 16 x 65. Times are medians on one thread,
with the 90th percentile where it says so; CPU is processor time, the fairer number on a busy machine. `cold` means that
the pages were dropped from memory first. Files are deleted at the end.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict

from torchmem.training.replay import Replay, bytes_per_step

ENVS, BATCH, LENGTH = 16, 16, 65
FLAGS = {"is_first": ((), "bool"), "is_last": ((), "bool"), "is_terminal": ((), "bool")}
SMALL = {  # 64 bytes a step
    **FLAGS,
    "reward": ((), "float32"),
    "action": ((), "uint8"),
    "obs": ((24,), "uint8"),
    "deter": ((4,), "float32"),
    "stoch": ((4,), "float32"),
}
IMAGE = {  # DreamerV3 size12m on 64x64x3 images
    **FLAGS,
    "reward": ((), "float32"),
    "action": ((), "int64"),
    "image": ((64, 64, 3), "uint8"),
    "deter": ((2048,), "float32"),
    "stoch": ((32, 16), "float32"),
}


def steps_of(schema: dict, rows: int) -> dict[str, torch.Tensor]:
    """`rows` random rows of all envs."""
    data = {}
    for key, (shape, dtype) in schema.items():
        kind = getattr(torch, dtype)
        size = (rows, ENVS, *shape)
        data[key] = torch.rand(size) if kind.is_floating_point else torch.randint(0, 2, size).to(kind)
    return data


def filled(schema: dict, steps: int, folder: Path) -> tuple[Replay, float]:
    """A replay full to the last step, wrapped once by a hundred rows, and the seconds one `add` took."""
    replay = Replay(schema, ENVS, steps, LENGTH, folder, 0)
    block = steps_of(schema, 64)
    rows = [{key: value[row] for key, value in block.items()} for row in range(64)]
    count = replay.rows + 100
    start = time.perf_counter()
    for row in range(count):
        replay.add(rows[row % 64])
    return replay, (time.perf_counter() - start) / count


def both(call: Callable[[], object], repeats: int) -> list[tuple[float, float]]:
    """Milliseconds on the clock and of the processor, of each call."""
    times = []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu)))
    return times


def timed(call: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds on the clock of each call."""
    return [wall for wall, _ in both(call, repeats)]


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(title: str, *columns: str) -> None:
    print(f"\n{title}\n")
    row(*columns)
    row(*["---"] * len(columns))


def drop_from_memory(folder: Path) -> None:
    gc.collect()
    for path in folder.rglob("*.memmap"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def costs(schema: dict, steps: int, folder: Path) -> list[str]:
    """One line of the tables `sizes` and `images`."""
    replay, add_s = filled(schema, steps, folder)
    replay.sample(ENVS * (replay.rows // LENGTH + 2))  # the online queue is served, from here on draws are uniform
    sampled = both(lambda: replay.sample(BATCH), 300)
    batches = [replay.sample(BATCH) for _ in range(30)]
    latents = [(b["index"][:, 1:], {key: b[key][:, 1:] for key in replay.latents}) for b in batches]
    written = [timed(lambda args=args: replay.write_back(*args), 1)[0] for args in latents]
    start = time.perf_counter()
    replay.snapshot()
    replay.commit()
    snapshot_ms = 1e3 * (time.perf_counter() - start)
    kept = [timed(lambda args=args: replay.write_back(*args), 1)[0] for args in latents]
    state = replay.snapshot()
    replay.close()
    del replay, batches, latents
    drop_from_memory(folder)
    replay = Replay.restore(folder, state)
    cold = timed(lambda: replay.sample(BATCH), 30)
    replay.close()
    ordered, cpu = sorted(wall for wall, _ in sampled), statistics.median(cpu for _, cpu in sampled)
    return [
        f"{steps:,}", f"{steps * bytes_per_step(schema) / 1e9:.2f} GB", f"{1e3 * add_s:.3f}",
        f"{statistics.median(ordered):.3f}", f"{ordered[270]:.3f}", f"{cpu:.3f}", f"{statistics.median(cold):.1f}",
        f"{statistics.median(written):.3f}", f"{statistics.median(kept):.3f}", f"{snapshot_ms:.0f}",
    ]  # fmt: skip


COLUMNS = (
    "steps", "on disk", "add (16 steps), ms", "sample 16 x 65, ms", "90 %", "CPU", "sample, cold, ms",
    "write back, ms", "and journal, ms", "snapshot, ms",
)  # fmt: skip


def sizes(folder: Path, max_bytes: float) -> None:
    table(f"Rows of {bytes_per_step(SMALL)} bytes, all written", *COLUMNS)
    for steps in (10**4, 10**5, 10**6, 10**7):
        if steps * bytes_per_step(SMALL) < max_bytes:
            row(*costs(SMALL, steps, folder / "small"))
            shutil.rmtree(folder / "small")


def images(folder: Path, max_bytes: float) -> None:
    table(f"Rows of {bytes_per_step(IMAGE)} bytes: a 64x64x3 image and size12m latents, all written", *COLUMNS)
    most = int(max_bytes / bytes_per_step(IMAGE) / ENVS) * ENVS
    for steps in (10**4, 10**5, most):
        if steps <= most:
            row(*costs(IMAGE, steps, folder / "images"))
            shutil.rmtree(folder / "images")


def peer(folder: Path, max_bytes: float) -> None:
    """TorchRL's TensorDictReplayBuffer(LazyMemmapStorage, SliceSampler) on equal rows, batch by batch in turn."""
    from torchrl.data import LazyMemmapStorage, SliceSampler, TensorDictReplayBuffer

    table(
        "TorchRL SliceSampler on the same rows, sampled in turn, two rows added before each batch as in training",
        "bytes/step", "steps", "pairs of batches", "torchmem, ms", "CPU", "TorchRL, ms", "CPU", "ratio", "CPU ratio",
    )  # fmt: skip
    for schema, counts in ((SMALL, (10**4, 10**5, 10**6)), (IMAGE, (10**4,))):
        for steps in counts:
            if 2 * steps * bytes_per_step(schema) > max_bytes:
                continue
            ours, _ = filled(schema, steps, folder / "ours")
            ours.sample(ENVS * (ours.rows // LENGTH + 2))
            count = min(ours.rows, int(5e7 / ENVS / bytes_per_step(schema)))
            block = steps_of(schema, count)
            # Streams run over episode ends, as in DreamerV3: a trajectory ends where its env's column does.
            block["end"] = torch.zeros(count, ENVS, 1, dtype=torch.bool)
            chunk = TensorDict({k: v.transpose(0, 1) for k, v in block.items()}, batch_size=[ENVS, count])
            theirs = TensorDictReplayBuffer(
                storage=LazyMemmapStorage(ours.rows * ENVS, ndim=2, scratch_dir=str(folder / "theirs")),
                sampler=SliceSampler(slice_len=LENGTH, end_key="end", cache_values=True, strict_length=True),
                batch_size=BATCH * LENGTH,
            )
            for _ in range(-(-ours.rows // count)):
                theirs.extend(chunk)
            one, pair = {key: value[0] for key, value in block.items() if key != "end"}, chunk[:, :2]
            times: list[tuple[float, ...]] = []
            deadline = time.perf_counter() + 20
            while len(times) < 40 and (len(times) < 5 or time.perf_counter() < deadline):
                ours.add(one)
                ours.add(one)
                theirs.extend(pair)  # it takes no single row
                mine = both(lambda r=ours: r.sample(BATCH), 1)[0]
                times.append((*mine, *both(lambda b=theirs: b.sample(), 1)[0]))
            medians = [f"{statistics.median(column):.2f}" for column in zip(*times, strict=True)]
            ratio, cpu_ratio = (statistics.median(t[2 + k] / t[k] for t in times) for k in (0, 1))
            row(bytes_per_step(schema), f"{steps:,}", len(times), *medians, f"{ratio:.1f}x", f"{cpu_ratio:.1f}x")
            ours.close()
            del ours, theirs
            gc.collect()
            for path in folder.iterdir():
                shutil.rmtree(path)


def layout(folder: Path, max_bytes: float) -> None:
    """Where the steps of one env lie: together, or every 16th, as lock-step rows would put them."""
    width, cells = 12288, int(min(max_bytes, 3e9) / 12288 / ENVS) * ENVS
    path = folder / "rows.memmap"
    block = np.ones(width * 2000, np.uint8)
    with open(path, "wb") as file:
        for first in range(0, cells, 2000):
            file.write(block[: width * min(2000, cells - first)])
    table(
        f"Layout: 16 x 65 images of 12,288 bytes out of {cells * width / 1e9:.1f} GB, ms",
        "steps of one env", "cold", "cold, prefetched", "in memory", "in memory, prefetched",
    )  # fmt: skip
    for name, stride in (("every 16th", ENVS), ("together (chosen, prefetched)", 1)):
        result = []
        for warm in (False, True):
            for prefetch in (False, True):
                drop_from_memory(folder)
                rows = np.memmap(path, np.uint8, "r+").reshape(cells, width)
                file = os.open(path, os.O_RDONLY)
                rng = np.random.default_rng(0)
                starts = rng.integers(0, cells - LENGTH * stride, (40, BATCH))
                times = []
                for draw in range(40):
                    first = starts[0 if warm else draw]
                    index = (first[:, None] + stride * np.arange(LENGTH)).reshape(-1)
                    begin = time.perf_counter()
                    if prefetch:
                        for place in (first if stride == 1 else index).tolist():
                            length = width * (LENGTH if stride == 1 else 1)
                            os.posix_fadvise(file, place * width, length, os.POSIX_FADV_WILLNEED)
                    np.take(rows, index, axis=0)
                    times.append(1e3 * (time.perf_counter() - begin))
                os.close(file)
                del rows
                result.append(f"{statistics.median(times):.2f}")
        row(name, *result)
    path.unlink()


def copies(folder: Path, max_bytes: float) -> None:
    """Which library copies rows fastest."""
    table("Copying 1,040 rows out of 20,000 and back, ms", "bytes/row", "np.take", "torch.index_select", "numpy []=",
          "torch.index_copy_")  # fmt: skip
    for width in (12288, 8192, 4, 1):
        array = np.ones((20_000, width), np.uint8)
        tensor = torch.from_numpy(array)
        index = np.random.default_rng(0).integers(0, 20_000, BATCH * LENGTH)
        out = np.empty((index.size, width), np.uint8)
        place, result = torch.from_numpy(index), torch.from_numpy(out)
        calls = (
            lambda a=array, i=index, o=out: np.take(a, i, axis=0, out=o, mode="clip"),
            lambda a=tensor, i=place, o=result: torch.index_select(a, 0, i, out=o),
            lambda a=array, i=index, o=out: a.__setitem__(i, o),
            lambda a=tensor, i=place, o=result: a.index_copy_(0, i, o),
        )
        row(width, *(f"{statistics.median(timed(call, 50)):.3f}" for call in calls))


PARTS = {part.__name__: part for part in (sizes, images, peer, layout, copies)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="a place on the disk to be measured")
    parser.add_argument("--max-gb", type=float, default=7, help="most disk taken at a time")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other, and the peer suffers most
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    free = shutil.disk_usage(args.folder).free / 1e9
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {memory:.0f} GB memory, {free:.0f} GB disk free, "
        f"torch {torch.__version__}, at most {args.max_gb:g} GB written at a time"
    )
    for part in args.parts:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="torchmem-replay-") as folder:
            PARTS[part](Path(folder), args.max_gb * 1e9)


if __name__ == "__main__":
    main()
