"""What knowing the place costs, paired: probes and tuning curves beside the procedures of vviggyy/dreamerv3f.

    python benchmarks/spatial.py                      # probe, tune and record, some minutes
    python benchmarks/spatial.py --only probe --full  # also the original's 5,000 iterations on one site and fold
    python benchmarks/spatial.py --only record --threads 2

A walker roams a Crafter-sized map (32 x 32 tiles); units of 12 sites are mixtures of place fields with slow noise. The
probe's rival is one linear layer over all tiles per site and fold, 5,000 iterations of AdamW on 75 % of the rows: it is
timed for 200 iterations on one site and fold, and scaled to 12 sites and 5 folds. The tuning's rival measures unit
after unit with pynapple and scipy; it is timed on some units and scaled to all. Within a round both run, one after the
other. Limits of issue 7: probe 30, tune 20. Threads are --threads; run it on a quiet machine.

Recording: a DreamerV3 (--size) plays Crafter in --worlds worlds on --workers processes, and `torchmem.record` keeps all
sites of encoder, dynamics, actor and critic, maps averaged, in bfloat16, with images and truth. Its steps per second of
wall time are compared with those of the same worlds and batched policy when nothing is kept (limit 0.85), and with a
loop of one world and one policy step after the other that keeps nothing either (limit 3; it is shorter). All episodes
have 200 steps, or few less (lava), without mobs, so that no world waits for another at the end.
--only batched: the same of a recurrent PPO on MiniGrid-Memory S13 in 1,024 batched worlds, all sites in float32, beside
such a loop of one world (limit 10); episodes end after 30 steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pynapple as nap
import torch
from scipy import ndimage, signal
from torch.nn import functional

from torchmem.analysis._position_nets import Prnn, train_prnn
from torchmem.analysis.probe_position import probe_position
from torchmem.analysis.tune_units import tune_units
from torchmem.envs.collector import Collector
from torchmem.envs.make import env_spec
from torchmem.envs.tensor_vector import TensorVector
from torchmem.envs.vector import VectorEnv
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.recording import Recording, RecordingWriter
from torchmem.surgery.model import Model
from torchmem.surgery.record import record
from torchmem.training.config import compose

SIDE, SITES, ROWS, FOLDS, ITERATIONS, TIMED = 32, 12, 10_000, 5, 5000, 200
LIMITS = {"probe": 30.0, "tune": 20.0, "record": 0.85, "batched": 10.0}
BATCH_LIMIT = 3.0  # recording Crafter against a loop of batch 1
LENGTH = 200
CRAFTER = {"length": LENGTH - 1, "disable_mobs": True}  # steps of an episode are one more: the first observation
KEPT = "encoder.* dynamics.* actor.* critic.*"


def walk(rng: np.random.Generator, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(position (T, 2), heading (T,)) of one episode, which begins near the middle."""
    ways = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    pos, turn = np.empty((steps, 2), np.int64), rng.integers(0, 4, steps)
    keep = rng.random(steps) < 0.7
    pos[0] = SIDE // 2
    for t in range(1, steps):
        turn[t] = turn[t - 1] if keep[t] else turn[t]
        pos[t] = np.clip(pos[t - 1] + ways[turn[t]], 0, SIDE - 1)
    return pos, turn


def make_recording(folder: Path, sites: int, units: int, seed: int = 0) -> Recording:
    """ROWS steps in 50 episodes. Later sites know the place better."""
    rng = np.random.default_rng(seed)
    length = ROWS // 50
    fields = [(rng.uniform(0, SIDE, (64, 2)), rng.uniform(1.5, 6, 64), rng.normal(size=(64, units)) / 4)
              for _ in range(sites)]  # fmt: skip
    with RecordingWriter(folder, control_hz=1.0, units={"pos": "cells"}) as out:
        for _ in range(50):
            pos, turn = walk(rng, length)
            columns = {}
            for s, (centre, width, mix) in enumerate(fields):
                away = ((pos[:, None] - centre) ** 2).sum(-1)
                slow = signal.lfilter([0.3], [1, -0.95], rng.normal(size=(length, units)), axis=0)
                level = 0.2 + 0.6 * (s + 1) / sites
                known = level * np.exp(-away / (2 * width**2)) @ mix
                columns[f"site.{s:02d}"] = (known + 0.3 * slow).astype(np.float32)
            facing = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])[turn]
            out.append(columns, {"pos": pos, "facing": facing})
        out.finish()
    return Recording(folder)


def softmax_by_gradient(x: torch.Tensor, place: torch.Tensor, iterations: int) -> torch.Tensor:
    """The original's decoder as it trains: one dense softmax over all tiles."""
    layer = torch.nn.Linear(x.shape[1], SIDE * SIDE, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.3)
    for _ in range(iterations):
        rows = torch.randint(len(x), (int(0.75 * len(x)),))
        loss = functional.cross_entropy(layer(x[rows]), place[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layer.weight.detach()


def one_by_one(frame: nap.TsdFrame, position: nap.TsdFrame, heading: nap.Tsd, units: range) -> None:
    """Maps, information, heading, explained variance and fields, unit after unit."""
    edges = [np.arange(SIDE + 1) - 0.5] * 2
    tile = np.asarray(position.values).astype(int)
    for unit in units:
        one = nap.TsdFrame(t=frame.t, d=frame.values[:, unit : unit + 1], time_support=frame.time_support)
        curve = nap.compute_tuning_curves(one, position, bins=edges, feature_names=["x", "y"])
        nap.compute_mutual_information(curve, np.array([one.values.mean()]))
        turned = nap.compute_tuning_curves(one, heading, bins=4, range=[(-np.pi, np.pi)])
        nap.compute_mutual_information(turned, np.array([one.values.mean()]))
        field = np.nan_to_num(curve.values[0])
        guess = field[tile[:, 0], tile[:, 1]]
        1 - np.var(one.values[:, 0] - guess) / np.var(one.values[:, 0])
        correlation = signal.correlate2d(field, field)
        correlation = correlation / correlation.max()
        ndimage.label((ndimage.maximum_filter(correlation, 3) == correlation) & (correlation > 0.15))
        core, _ = ndimage.label(correlation > 0.5)
        np.linalg.eigvalsh(np.cov(np.argwhere(core == core[SIDE - 1, SIDE - 1]).T))


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """CPU seconds of this process: what else the machine does, and being stopped, do not count."""
    began = time.process_time()
    answer = function()
    return time.process_time() - began, answer


def report(name: str, ours: list[float], theirs: list[float], note: str) -> None:
    ratios = [b / a for a, b in zip(ours, theirs)]
    middle = statistics.median(ratios)
    verdict = "holds" if middle >= LIMITS[name] else "FAILS"
    print(f"{name:<6} ours {statistics.median(ours):8.1f} s   rival {statistics.median(theirs):10.0f} s ({note})")
    print(f"{'':<6} ratio {middle:.0f} ({min(ratios):.0f} to {max(ratios):.0f}), limit {LIMITS[name]:.0f}: {verdict}")


def bench_probe(folder: Path, units: int, rounds: int, full: bool) -> None:
    rec = make_recording(folder / "probe", SITES, units)
    pos = rec.covariates["pos"][:]
    place = torch.as_tensor(pos[:, 0] * SIDE + pos[:, 1])
    ours, theirs, controls = [], [], []
    train = _training_rows(rec, 0)
    x, y = torch.as_tensor(rec.activations["site.00"][:][train]), place[train]
    for _ in range(rounds):
        took, result = timed(lambda: probe_position(rec, area=(SIDE, SIDE), draws=1, resamples=100, pixels=None))
        ours.append(took)
        took, _ = timed(lambda: softmax_by_gradient(x, y, TIMED))
        theirs.append(took * ITERATIONS / TIMED * SITES * FOLDS)
        controls.append(took)
    note = f"{statistics.median(controls):.1f} s for {TIMED} iterations on one site and fold, scaled"
    report("probe", ours, theirs, note)
    print(f"       12 sites x {ROWS} rows x {units} units, {FOLDS} folds; ours with 1 exchange and 1 shift of labels")
    print(result.summary())  # type: ignore[attr-defined]
    if full:
        held = ~train
        site = f"site.{SITES - 1:02d}"
        x = torch.as_tensor(rec.activations[site][:])
        took, weight = timed(lambda: train_prnn(x[train], place[train], SIDE * SIDE, Prnn(judged=0), 0))
        guess = (x[held] @ weight.T).argmax(-1)  # type: ignore[attr-defined]
        off = (guess // SIDE - place[held] // SIDE).abs() + (guess % SIDE - place[held] % SIDE).abs()
        mine = np.nanmean(result.errors(site)[held])  # type: ignore[attr-defined]
        print(f"{site}, fold 0, mean error in tiles: ours {mine:.3f}, rival {off.float().mean():.3f} "
              f"after {ITERATIONS} iterations ({took:.0f} s)")  # fmt: skip


def _training_rows(rec: Recording, fold: int) -> np.ndarray:
    """As `probe_position` deals them with seed 0."""
    from torchmem.analysis.nulls import deal_folds

    return deal_folds(rec.episode, FOLDS, np.random.default_rng(0)) != fold


def bench_tune(folder: Path, units: int, some: int, rounds: int) -> None:
    rec = make_recording(folder / "tune", 1, units)
    frame, position = rec.tsd("site.00"), rec.tsd("pos")
    facing = np.asarray(rec.covariates["facing"][:])
    heading = nap.Tsd(t=frame.t, d=np.arctan2(facing[:, 1], facing[:, 0]), time_support=frame.time_support)
    frame = nap.TsdFrame(t=frame.t, d=np.maximum(frame.values, 0), time_support=frame.time_support)
    ours, tested, theirs = [], [], []
    tune_units(rec, epochs=rec.epochs()[:2], shifts=0, corrected=False)  # what is compiled and imported at first use
    one_by_one(frame, position, heading, range(2))
    for _ in range(rounds):
        ours.append(timed(lambda: tune_units(rec, shifts=0, corrected=False, rectify="relu"))[0])
        took, _ = timed(lambda: one_by_one(frame, position, heading, range(some)))
        theirs.append(took * units / some)
        tested.append(timed(lambda: tune_units(rec, rectify="relu"))[0])
    report("tune", ours, theirs, f"timed on {some} units, scaled to {units}")
    print(f"       {units} units, {ROWS} steps; with held-out folds, borders and neighbour statistics, which the rival "
          f"leaves out.\n       With 100 shifts, for p and bias: {statistics.median(tested):.1f} s, still "
          f"{statistics.median([b / a for a, b in zip(tested, theirs)]):.1f} times as fast as the rival without")


def bare_play(agent: DreamerAgent | PPOAgent, worlds: VectorEnv, steps: int) -> None:
    """Worlds and batched policy alone, for so many lock-steps."""
    generator = torch.Generator().manual_seed(0)
    collector = Collector(worlds, agent.initial(worlds.n))

    def policy(obs, carry):  # type: ignore[no-untyped-def]
        return agent.policy(obs, carry, agent.acting_noise(worlds.n, generator))

    for _ in range(steps):
        collector.step(policy)


def tell_ratio(recorded: list[float], others: list[float], rival: str, limit: float | None) -> None:
    ratios = [a / b for a, b in zip(recorded, others)]
    middle = statistics.median(ratios)
    verdict = "" if limit is None else f", limit {limit}: {'holds' if middle >= limit else 'FAILS'}"
    print(f"       recorded / {rival}: {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}){verdict}")


def bench_record(folder: Path, size: str, count: int, workers: int, episodes: int, rounds: int) -> None:
    config = compose(["agent=dreamer", "env=crafter", f"size={size}"]).agent
    torch.manual_seed(0)
    agent = DreamerAgent(env_spec("crafter", **CRAFTER), config)
    model = Model(agent)
    rates: dict[str, list[float]] = {"recorded": [], "bare": [], "batch 1": []}
    keep = {"pooling": "mean", "dtype": "bfloat16", "envs": count, "workers": workers}
    record(model, sites=KEPT, episodes=count, out=folder / "warm", **keep)
    for number in range(rounds):
        kinds = [*rates][:: 1 if number % 2 else -1]
        for kind in kinds:
            if kind == "batch 1":
                with VectorEnv("crafter", CRAFTER, 1, split="record", seed=0) as worlds:
                    began = time.perf_counter()  # without the making of the world, unlike the others
                    bare_play(agent, worlds, 2 * LENGTH)
                    rates[kind].append(2 * LENGTH / (time.perf_counter() - began))
                continue
            began = time.perf_counter()
            if kind == "recorded":
                steps = record(model, sites=KEPT, episodes=episodes * count, out=folder / f"r{number}", **keep).steps
            else:
                with VectorEnv("crafter", CRAFTER, count, split="record", seed=0, workers=workers) as worlds:
                    bare_play(agent, worlds, episodes * LENGTH)
                steps = episodes * count * LENGTH
            rates[kind].append(steps / (time.perf_counter() - began))
    told = ", ".join(f"{kind} {statistics.median(values):.0f}" for kind, values in rates.items())
    print(f"record steps/s: {told} (size {size}, {count} worlds, {workers} workers, {len(model.sites)} sites known)")
    for rival, limit in (("bare", LIMITS["record"]), ("batch 1", BATCH_LIMIT)):
        tell_ratio(rates["recorded"], rates[rival], rival, limit)


def bench_batched(folder: Path, count: int, episodes: int, rounds: int) -> None:
    kwargs = {"size": 13, "view": 3, "obs": "symbolic_onehot", "max_steps": 29}
    torch.manual_seed(0)
    agent = PPOAgent(env_spec("minigrid_memory", **kwargs), PPOConfig(head_layers=1))
    model = Model(agent)
    rates: dict[str, list[float]] = {"recorded": [], "bare": [], "batch 1": []}
    keep = {"sites": "encoder.* core.* memory actor.* critic.*", "envs": count, "batched": True}
    record(model, episodes=count, out=folder / "warm_batched", **keep)
    for number in range(rounds):
        for kind in [*rates][:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            if kind == "recorded":
                steps = record(model, episodes=episodes * count, out=folder / f"b{number}", **keep).steps
            elif kind == "bare":
                bare_play(agent, TensorVector("minigrid_memory", kwargs, count, split="record", seed=0), episodes * 30)
                steps = count * episodes * 30
            else:
                steps = 1000
                with VectorEnv("minigrid_memory", kwargs, 1, split="record", seed=0) as worlds:
                    bare_play(agent, worlds, steps)
            rates[kind].append(steps / (time.perf_counter() - began))
    told = ", ".join(f"{kind} {statistics.median(values):.0f}" for kind, values in rates.items())
    print(f"batched steps/s: {told} ({count} worlds, {len(model.sites)} sites known)")
    for rival, limit in (("bare", None), ("batch 1", LIMITS["batched"])):
        tell_ratio(rates["recorded"], rates[rival], rival, limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(LIMITS))
    parser.add_argument("--units", type=int, default=256, help="of each probed site (%(default)s)")
    parser.add_argument("--tuned", type=int, default=2048, help="units to tune (%(default)s)")
    parser.add_argument("--some", type=int, default=128, help="units on which the rival is timed (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", default="1m", help="of the agent that is recorded (%(default)s)")
    parser.add_argument("--worlds", type=int, default=64, help="of Crafter (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of its worlds (%(default)s)")
    parser.add_argument("--episodes", type=int, default=4, help="recorded in each world (%(default)s)")
    parser.add_argument("--full", action="store_true", help="run the rival's 5,000 iterations on one site and fold")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        if given.only in (None, "tune"):
            bench_tune(Path(folder), given.tuned, given.some, given.rounds)
        if given.only in (None, "probe"):
            bench_probe(Path(folder), given.units, given.rounds, given.full)
        if given.only in (None, "record"):
            bench_record(Path(folder), given.size, given.worlds, given.workers, given.episodes, given.rounds)
        if given.only in (None, "batched"):
            bench_batched(Path(folder), 1024, given.episodes, given.rounds)


if __name__ == "__main__":
    main()
