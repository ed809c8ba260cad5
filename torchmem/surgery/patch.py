"""patch_sweep: what happens to the behaviour if a value at one site, step and group of units came from another run.

Two runs that differ in one thing (the cue, say), the same actions and the same noise: `clean` and `corrupted`.
Denoising puts clean values into the corrupted run (are they sufficient?), noising the other way (are they necessary?);
the two need not agree. Normalised effect: 0 the run stayed as it was, 1 it behaves like the other (Zhang & Nanda 2023,
arXiv 2309.16042).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from torchmem.result import Provenance, Result
from torchmem.surgery.items import TraceError
from torchmem.surgery.request import Request, sequence
from torchmem.surgery.trace import PlainTracer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Direction = Literal["denoise", "noise"]
Method = Literal["exact", "attribution", "integrated"]
Metric = Callable[[Any], Tensor]  # outputs of a pass -> (B,), larger in clean than in corrupted runs


@dataclasses.dataclass(frozen=True)
class PatchSweep(Result):
    """Normalised effects by "direction/method/site": (T,) for whole sites, (T, G) where unit groups were given.

    clean, corrupted: the metric of the untouched runs, mean over pairs. error: standard error over pairs of each exact
    effect. by_unit: (T, N) shares of single units in the attributed effects, which sum to the effect of the step.
    control: exact effects of patching from a run that does not differ in what matters. agreement: Spearman's rank
    correlation of each approximation with the exact effects, over sites, steps and groups (NaN where all are equal).
    """

    clean: float
    corrupted: float
    pairs: int
    steps: tuple[int, ...]
    effects: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    by_unit: dict[str, np.ndarray]
    control: dict[str, np.ndarray]
    agreement: dict[str, float]

    def summary(self) -> str:
        lines = [f"patch sweep over {self.pairs} pairs: metric {self.clean:.3f} clean, {self.corrupted:.3f} corrupted"]
        for key, effect in self.effects.items():
            best = np.unravel_index(int(np.abs(effect).argmax()), effect.shape)
            where = f"step {self.steps[best[0]]}" + (f", group {best[1]}" if len(best) > 1 else "")
            line = f"{key}: largest effect {effect[best]:.3f} at {where}"
            if key in self.error:
                line += f" (standard error {self.error[key][best]:.3f})"
            if key in self.control:
                line += f"; control at most {np.abs(self.control[key]).max():.3f}"
            lines.append(line)
        lines += [f"rank agreement with exact patching, {key}: {value:.3f}" for key, value in self.agreement.items()]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        for key, effect in self.effects.items():
            curves = effect[:, None] if effect.ndim == 1 else effect
            for group in range(curves.shape[1]):
                name = key if effect.ndim == 1 else f"{key} group {group}"
                (line,) = ax.plot(self.steps, curves[:, group], label=name, ls="-" if "exact" in key else "--")
                if key in self.error:
                    error = self.error[key] if effect.ndim == 1 else self.error[key][:, group]
                    low, high = curves[:, group] - 1.96 * error, curves[:, group] + 1.96 * error
                    ax.fill_between(self.steps, low, high, color=line.get_color(), alpha=0.2, lw=0)
        ax.axhline(0, color="grey", lw=0.5)
        ax.axhline(1, color="grey", lw=0.5)
        ax.set(xlabel="patched step", ylabel="normalised effect")
        ax.legend(fontsize="x-small")
        return ax


def logit_difference(right: int, wrong: int, step: int | slice = -1, key: str = "action") -> Metric:
    """A metric: logits of one action minus those of another at a step, or their mean over several steps."""

    def measure(out: Any) -> Tensor:
        logits = out.policy[key][0]
        difference = (logits[..., right] - logits[..., wrong])[:, step]
        return difference if difference.dim() == 1 else difference.mean(1)

    return measure


def patch_sweep(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    *,
    sites: Sequence[str] = ("memory",),
    steps: Sequence[int] | None = None,
    units: Sequence[Sequence[int]] | None = None,
    directions: Sequence[Direction] = ("denoise", "noise"),
    methods: Sequence[Method] = ("exact", "attribution", "integrated"),
    control: Any = None,
    points: int = 8,
    rows: int = 512,
    seed: int = 0,
) -> PatchSweep:
    """Patch every site at every step (and group of units) and see how far the behaviour follows.

    clean, corrupted: sequences as for `model.trace`, row by row a pair, (B, T, ...). metric: see `logit_difference`.
    units: groups of flattened unit indices for exact patching; None patches all units of a site together. control: a
    batch like `corrupted` that differs from it only in what should not matter; its values are patched in, too. points:
    of integrated gradients. rows: sequences that share one pass; more is faster and takes more memory.
    exact: one run per cell. attribution: gradient times difference, a straight line from one run. integrated: the mean
    gradient along the way to the other value, which adds up to the exact effect as `points` grows.
    Raises TraceError where the two runs do not pair up or the metric does not tell them apart.
    """
    ends, where = paired(model, clean, corrupted, steps, seed)
    a = ends["clean"]
    values, scores = {}, {}
    for name, request in ends.items():
        values[name], scores[name] = look(model, request, sites, metric)
    gap = float((scores["clean"] - scores["corrupted"]).mean())
    if abs(gap) < 1e-6:
        score = float(scores["clean"].mean())
        raise TraceError(f"the metric is {score:.3g} in both runs: there is nothing to patch back")
    sweep = _Sweep(model, metric, where, units, points, max(1, rows // a.rows))
    effects, error, by_unit, controls, agreement = {}, {}, {}, {}, {}
    for direction in directions:
        into, source = ("corrupted", "clean") if direction == "denoise" else ("clean", "corrupted")
        scale = gap if direction == "denoise" else -gap
        pieces: dict[str, list[np.ndarray]] = {}
        for site in sites:
            start, donor = values[into][site], values[source][site]
            for method in methods:
                key = f"{direction}/{method}/{site}"
                if method == "exact":
                    moved = (sweep.exact(ends[into], site, donor) - scores[into]) / scale  # (T, G, B)
                    effects[key] = _groups(moved.mean(-1, keepdim=True), units)
                    error[key] = _groups(moved.std(-1, keepdim=True) / math.sqrt(a.rows), units)
                else:
                    find = sweep.attribution if method == "attribution" else sweep.integrated
                    share = (find(ends[into], site, start, donor) / scale).mean(1)  # (T, N)
                    by_unit[key] = share.numpy()
                    whole = [range(share.shape[1])] if units is None else units
                    effects[key] = _groups(torch.stack([share[:, list(g)].sum(-1) for g in whole], 1)[..., None], units)
                pieces.setdefault(method, []).append(effects[key].ravel())
            if control is not None and direction == "denoise" and "exact" in methods:
                other, _ = look(model, sequence(model.agent, control, seed=seed), [site], metric)
                moved = (sweep.exact(ends[into], site, other[site]) - scores[into]) / scale
                controls[f"{direction}/exact/{site}"] = _groups(moved.mean(-1, keepdim=True), units)
        for method in ("attribution", "integrated"):
            if method in pieces and "exact" in pieces:
                agreement[f"{direction}/{method}"] = rank_agreement(
                    np.concatenate(pieces["exact"]), np.concatenate(pieces[method])
                )
    return PatchSweep(
        clean=float(scores["clean"].mean()),
        corrupted=float(scores["corrupted"].mean()),
        pairs=a.rows,
        steps=where,
        effects=effects,
        error=error,
        by_unit=by_unit,
        control=controls,
        agreement=agreement,
        provenance=Provenance.here(
            seeds={"noise": seed}, edits=tuple(e.describe() for e in model.edits), caveats=model.caveats
        ),
    )


def rank_agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; NaN where one of them has fewer than two different values."""
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return math.nan
    found: Any = spearmanr(a, b)
    return float(found.statistic)


def _groups(value: Tensor, units: Any) -> np.ndarray:
    """(T, G, 1) as (T, G), or (T,) where there are no groups."""
    return (value.squeeze(-1) if units is not None else value[:, 0, 0]).numpy()


def paired(
    model: Any, clean: Any, corrupted: Any, steps: Sequence[int] | None, seed: int
) -> tuple[dict[str, Request], tuple[int, ...]]:
    """Both runs as requests, "clean" and "corrupted", and the steps that are patched. Raises TraceError."""
    ends = {"clean": sequence(model.agent, clean, seed=seed), "corrupted": sequence(model.agent, corrupted, seed=seed)}
    a, b = ends["clean"], ends["corrupted"]
    if (a.rows, a.steps) != (b.rows, b.steps):
        raise TraceError(f"clean is {a.rows} x {a.steps} (rows x steps), corrupted {b.rows} x {b.steps}: give pairs")
    return ends, tuple(range(a.steps)) if steps is None else tuple(int(t) % a.steps for t in steps)


def look(model: Any, request: Request, sites: Sequence[str], metric: Metric) -> tuple[dict[str, Tensor], Tensor]:
    """Values of the sites (B, T, *shape) and the metric (B,) of an untouched run."""
    slots = {}
    with tracer_of(model, [request], grad=False) as tracer:
        for site in sites:
            slots[site] = model.site(site).save()
    score = metric(tracer.out)
    if score.shape != (request.rows,):
        raise TraceError(f"the metric returned {list(score.shape)}, one number per row is needed: [{request.rows}]")
    return slots, score


def tracer_of(model: Any, requests: Sequence[Request], grad: bool) -> PlainTracer:
    def run(request: Request) -> Any:
        with torch.set_grad_enabled(grad):
            return model._run(request)

    return PlainTracer(run, functools.partial(sequence, model.agent), model._bench, *requests)


@dataclasses.dataclass
class _Sweep:
    model: Any
    metric: Metric
    steps: tuple[int, ...]
    units: Sequence[Sequence[int]] | None
    points: int
    at_once: int  # cells that share a pass

    def exact(self, into: Request, site: str, donor: Tensor) -> Tensor:
        """The metric of the patched runs, (steps, groups, B)."""
        groups: Sequence[Sequence[int] | None] = [None] if self.units is None else self.units
        cells = [(t, group) for t in self.steps for group in groups]
        found = []
        for chunk in chunks(cells, self.at_once):
            with tracer_of(self.model, [into] * len(chunk), grad=False) as tracer:
                for number, (t, group) in enumerate(chunk):
                    with tracer.rows_of(number):
                        self.model.site(site).write(_patched(donor[:, t], group), (slice(None), t))
            found.append(self.metric(tracer.out).unflatten(0, (len(chunk), into.rows)))
        return torch.cat(found).unflatten(0, (len(self.steps), len(groups)))

    def attribution(self, into: Request, site: str, start: Tensor, donor: Tensor) -> Tensor:
        """Gradient times difference at each step, (steps, B, N)."""
        with tracer_of(self.model, [into], grad=True) as tracer:
            nudge = self.model.site(site).nudge()
        self.metric(tracer.out).sum().backward(inputs=[nudge])
        assert nudge.grad is not None
        share = nudge.grad * (donor - start)
        return share.detach().flatten(2)[:, list(self.steps)].transpose(0, 1)

    def integrated(self, into: Request, site: str, start: Tensor, donor: Tensor) -> Tensor:
        """Mean gradient along the straight way from one value to the other, times the difference, (steps, B, N)."""
        cells = [(t, (i + 0.5) / self.points) for t in self.steps for i in range(self.points)]
        grads = []
        for chunk in chunks(cells, self.at_once):
            leaves = []
            with tracer_of(self.model, [into] * len(chunk), grad=True) as tracer:
                for number, (t, share) in enumerate(chunk):
                    leaves.append(torch.lerp(start[:, t], donor[:, t], share).detach().requires_grad_())
                    with tracer.rows_of(number):
                        self.model.site(site).write(leaves[-1], (slice(None), t))
            self.metric(tracer.out).sum().backward(inputs=leaves)
            grads += [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        mean = torch.stack(grads).unflatten(0, (len(self.steps), self.points)).mean(1).flatten(2)  # (steps, B, N)
        return mean * (donor - start).detach().flatten(2)[:, list(self.steps)].transpose(0, 1)


def _patched(donor: Tensor, group: Sequence[int] | None) -> Any:
    """All units from the donor (B, *shape), or a function that takes over a group of flattened units."""
    if group is None:
        return donor
    chosen = torch.zeros(donor[0].numel(), dtype=torch.bool, device=donor.device)
    chosen[list(group)] = True
    return lambda there: torch.where(chosen.view(donor.shape[1:]), donor, there)


def chunks(cells: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]

