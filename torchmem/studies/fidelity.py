"""How far a simulator can be believed: measured on held-out levels, and asked before anything is concluded from it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmem.analysis.nulls import resample_groups
from torchmem.errors import TorchmemError
from torchmem.models.checkpoint import find_agent
from torchmem.models.simulator.files import load_simulator, weights_of
from torchmem.models.simulator.observations import to_float
from torchmem.models.simulator.window import cut_window
from torchmem.recording import Recording
from torchmem.report import write_report
from torchmem.result import CARD, Provenance, load_result, save_figures
from torchmem.studies.fidelity_measures import Measures, latent_realism, measure_windows
from torchmem.studies.fidelity_result import FidelityResult
from torchmem.training.recorded import check_recording, levels_of, read_rows, split_levels, spread_places, windows_at

FOLDER = "fidelity"  # in the run folder of a simulator
DRAWS, BINS = 1000, 5
INTRO = (
    "What is simulated is measured against the real steps of levels that training never saw, beside the last real "
    "frame copied again and again. measures.png, in the same folder, shows every measure."
)
log = logging.getLogger("torchmem")


class FidelityError(TorchmemError):
    """A simulator was not measured, or is not good enough; the message says what to do."""


def measure_fidelity(
    simulator: str | Path,
    recording: str | Path,
    *,
    agent: Any = None,
    horizon: int = 16,
    gate: int = 8,
    limit: float = 1.0,
    episodes: int = 64,
    each: int = 4,
    batch: int = 32,
    all_levels: bool = False,
    seed: int = 0,
    device: str = "cpu",
) -> FidelityResult:
    """Measure on windows of held-out levels: `each` from each of up to `episodes` episodes, `horizon` steps simulated.

    simulator: a run of `torchmem simulator train`, or of a dreamer or r2i agent. recording: its own, of which the
    levels that training held out are taken, or another one, likewise (a level's side depends on its name alone).
    all_levels: take every episode, of a recording that training never saw; always so for dreamer and r2i, whose
    training levels are never recorded. gate, limit: the simulator passes where its error over steps 1..gate is surely
    below `limit` times that of copying the last frame.

    Raises CheckpointError, RecordingError, ConfigError for what cannot be read or does not fit.
    """
    if not 1 <= gate < horizon:
        raise ValueError(f"gate={gate} must be within 1..horizon - 1 = {horizon - 1}")
    world, loop, home = load_simulator(simulator, agent, device)
    rec = Recording(recording)
    check_recording(rec, world.spec)
    trained = hasattr(world, "config")  # an agent's own world model learnt from other levels than are recorded
    chosen = split_levels(rec, world.config.held_out)[1] if trained and not all_levels else range(len(rec.episodes))
    chosen = chosen[:episodes]
    rows = list(read_rows(rec, loop, chosen, seed))
    places = spread_places(rows, each, horizon, seed)
    names = levels_of(rec)
    groups = np.unique([names[chosen[episode]] for episode, _ in places], return_inverse=True)[1]
    parts: list[Measures] = []
    first: list[tuple[Any, Any]] = []
    for begin in range(0, len(places), batch):
        some = windows_at(rows, places[begin : begin + batch], world.context, horizon)
        some = {key: value.to(device) for key, value in some.items()}
        parts.append(measure_windows(world, loop, some, seed + begin))
        if hasattr(world, "random_latent"):
            window = cut_window(some, world.spec, world.context)
            with torch.no_grad():
                first.append((to_float(window.obs, world.spec.obs, torch.float32), world.encode(window.context)))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scale_memory(found, rows, loop)
    realism = {}
    if first:
        frames = {key: torch.cat([obs[key][:, 0] for obs, _ in first]) for key in world.spec.obs}
        realism = latent_realism(world, frames, torch.cat([latent for _, latent in first]), seed)
    return summarise(
        found, groups, horizon, gate, limit, realism, seed,
        simulator=str(simulator), weights=weights_of(home), recording=str(recording),
        provenance=Provenance.here(
            checkpoint=str(home), weights=weights_of(home), seeds={"fidelity": seed},
            caveats=rec.provenance.caveats, config={"horizon": horizon, "episodes": len(chosen), "each": each},
        ),
    )  # fmt: skip


def scale_memory(found: Measures, rows: list[dict[str, np.ndarray]], loop: Any) -> None:
    """Squared distances of memories as shares of the variance of what the agent really remembered."""
    packed = torch.from_numpy(np.concatenate([one["agent_carry"] for one in rows])).to(loop.agent.device)
    with torch.no_grad():
        memory = loop.agent.memory_of(loop.packing.unpack(packed)).reshape(len(packed), -1)
    variance = max(float(memory.var(0, correction=0).sum()), 1e-12)
    for name in found:
        if name.startswith("memory."):
            found[name] = found[name] / variance


def summarise(
    found: Measures, groups: np.ndarray, horizon: int, gate: int, limit: float, realism: dict[str, float], seed: int,
    **known: Any,
) -> FidelityResult:  # fmt: skip
    """Means by step with intervals over levels, ratios to copying, calibration."""
    weight = found["weight"]
    count = int(groups.max()) + 1
    drawn = resample_groups(count, DRAWS, np.random.default_rng(seed))  # (draws, levels)

    def grouped(values: np.ndarray) -> np.ndarray:
        out = np.zeros((count, values.shape[1]))
        np.add.at(out, groups, values)
        return out

    def spread(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step that no window reaches has no number
            middle = above.sum(0) / below.sum(0)
            many = (drawn @ above) / (drawn @ below)  # NaN: a draw without a window at this step
            low, high = np.nanquantile(many, (0.025, 0.975), axis=0, method="lower")
        return middle, low, high

    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for name, values in found.items():
        if "." in name and values.shape[1] == horizon:
            curves[name] = spread(grouped(values * weight), grouped(weight))
    ratio = {}
    for what in ("observation", "memory", "kl", "value", "reward"):
        inside = slice(1, gate + 1)
        sums = [
            grouped((found[f"{what}.{view}"] * weight)[:, inside].sum(1, keepdims=True))
            for view in ("simulated", "copy")
        ]
        ratio[what] = np.array([float(part[0]) for part in spread(*sums)])
    ones = np.ones((len(groups), 1))
    closed = {
        name: np.array([float(part[0]) for part in spread(grouped(found[name]), grouped(ones))])
        for name in ("closed.return", "real.return", "closed.end", "real.end")
    }
    return FidelityResult(
        levels=count, windows=len(groups), horizon=horizon, gate=gate, limit=limit,
        mean={k: v[0] for k, v in curves.items()}, low={k: v[1] for k, v in curves.items()},
        high={k: v[2] for k, v in curves.items()}, ratio=ratio, closed=closed,
        calibration=calibrate(found["done"][weight > 0], found["terminal"][weight > 0]), realism=realism, **known,
    )  # fmt: skip


def calibrate(predicted: np.ndarray, came: np.ndarray) -> np.ndarray:
    """(bins, 3): mean prediction, how often it came, how many; bins of equal width, empty ones left out."""
    place = np.minimum((predicted * BINS).astype(int), BINS - 1)
    rows = [(predicted[place == b].mean(), came[place == b].mean(), (place == b).sum()) for b in range(BINS)
            if (place == b).any()]  # fmt: skip
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def report_fidelity(simulator: str | Path, recording: str | Path, out: str | Path | None = None, **how: Any) -> Path:
    """`measure_fidelity`, written to <run folder>/fidelity (where `require_fidelity` looks) or `out`: the result, all
    its figures, report.html. Returns the folder."""
    found = measure_fidelity(simulator, recording, **how)
    folder = Path(out) if out is not None else home_of(simulator)
    found.save(folder, overwrite=True)
    save_figures({"measures": found.figure()}, folder, found.provenance.caveats)
    write_report(folder / "report.html", "Fidelity of a simulator", {"Held-out levels": found}, INTRO)
    return folder


def home_of(simulator: str | Path) -> Path:
    """Where the report of a simulator lies: in its run folder, or beside its weights."""
    home = find_agent(simulator)
    run = next((p for p in home.absolute().parents[:4] if (p / "run.json").is_file()), home.parent)
    return run / FOLDER


def require_fidelity(simulator: str | Path, allow: bool = False) -> FidelityResult | None:
    """The report of a simulator that passed its gate; what every analysis of a simulator asks first.

    Raises FidelityError where there is no report, where it is of other weights, or where the simulator failed. allow:
    say so in the log and go on (None where there is no report).
    """
    folder, found = home_of(simulator), None
    if not (folder / CARD).is_file():
        fault = f"{simulator} was never measured: run torchmem simulator report {simulator} --recording RECORDING"
    else:
        told = load_result(folder)
        if not isinstance(told, FidelityResult):
            raise FidelityError(f"{folder} holds a {type(told).__name__}, no fidelity report: move it away")
        found, fault = told, ""
        if told.weights != weights_of(find_agent(simulator)):
            fault = f"the report in {folder} is of other weights: run torchmem simulator report {simulator} again"
        elif not told.passed:
            ratios = ", ".join(f"{what} {told.ratio[what][0]:.2f}" for what in told.failed)
            fault = f"{simulator} is no better than copying the last frame on {ratios} (see {folder}): train it longer"
    if fault and not allow:
        raise FidelityError(f"{fault}; or allow it, knowing that what it shows may not be the world")
    if fault:
        log.warning("%s; going on all the same", fault)
    return found
