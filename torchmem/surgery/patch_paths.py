"""patch_paths: through which of its readers does a value act? The reader alone sees the other run's value.

Path patching (Goldowsky-Dill et al. 2023, arXiv 2304.05969) for a recurrent network, where a value is read again at the
next step. Two passes for every path from a sender at step t to a receiver:

    1. the sender has the other run's value, all other receivers are held at their own: keep what the receiver says
    2. nothing is patched but the receiver, which says that; everything after it is free

Beside the paths stand the whole effect of the sender, and what is left of it while all receivers are held: what goes
past them, such as the part of a GRU's state that is carried over unread.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchmem.result import Provenance, Result
from torchmem.surgery.items import TraceError
from torchmem.surgery.patch import Direction, Metric, chunks, look, paired, tracer_of
from torchmem.surgery.request import Request

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READ = 2  # a value is read at its own step, and by the recurrence at the next one


@dataclasses.dataclass(frozen=True)
class PathPatch(Result):
    """Normalised effects by step of the sender, each (T,): 0 the run stayed as it was, 1 it behaves like the other.

    paths: receiver -> effect through it alone. whole: of the sender by all ways. past: while all receivers are held.
    error: the same names -> standard error over pairs. clean, corrupted: the metric of the untouched runs.
    """

    sender: str
    direction: str
    clean: float
    corrupted: float
    pairs: int
    steps: tuple[int, ...]
    paths: dict[str, np.ndarray]
    whole: np.ndarray
    past: np.ndarray
    error: dict[str, np.ndarray]

    def _curves(self) -> dict[str, np.ndarray]:
        return {"whole": self.whole, **self.paths, "past all receivers": self.past}

    def table(self) -> dict[str, list]:
        """One row per step."""
        return {"step": list(self.steps)} | {name: curve.tolist() for name, curve in self._curves().items()}

    def summary(self) -> str:
        lines = [f"ways from {self.sender} ({self.direction}) over {self.pairs} pairs: metric {self.clean:.3f} clean, "
                 f"{self.corrupted:.3f} corrupted; largest normalised effect by path"]  # fmt: skip
        for name, curve in self._curves().items():
            best = int(np.abs(curve).argmax())
            lines.append(f"  {name}: {curve[best]:.3f} at step {self.steps[best]} (standard error "
                         f"{self.error[name][best]:.3f})")  # fmt: skip
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        for name, curve in self._curves().items():
            style = {"whole": ("k", "-"), "past all receivers": ("0.5", ":")}.get(name, (None, "-"))
            (line,) = ax.plot(self.steps, curve, color=style[0], ls=style[1], label=name)
            error = 1.96 * self.error[name]
            ax.fill_between(self.steps, curve - error, curve + error, color=line.get_color(), alpha=0.2, lw=0)
        ax.axhline(0, color="grey", lw=0.5)
        ax.set(xlabel=f"step at which {self.sender} is patched", ylabel="normalised effect")
        ax.legend(fontsize="x-small")
        return ax


def patch_paths(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    *,
    receivers: Sequence[str],
    sender: str = "memory",
    steps: Sequence[int] | None = None,
    direction: Direction = "denoise",
    rows: int = 512,
    seed: int = 0,
) -> PathPatch:
    """How much of the sender's effect at each step goes through each receiver.

    clean, corrupted, metric, rows: as for `patch_sweep`. receivers: sites that read the sender at its own or the next
    step, such as the parts of a cell and the first layers of the heads; what else lies between them and the sender
    counts for the receiver that it reaches. Effects of several receivers need not add up where they work together.
    Raises UnknownSite; TraceError where the runs do not pair up, the metric does not tell them apart, or the sender is
    among the receivers.
    """
    names = [model.find(name).name for name in receivers]
    if model.find(sender).path in [model.find(name).path for name in names] or not names:
        raise TraceError(f"receivers of {sender} must be other sites, at least one; got {', '.join(names) or 'none'}")
    ends, where = paired(model, clean, corrupted, steps, seed)
    pairs = ends["clean"].rows
    values, scores = {}, {}
    for name, request in ends.items():
        values[name], scores[name] = look(model, request, [sender, *names], metric)
    into, source = ("corrupted", "clean") if direction == "denoise" else ("clean", "corrupted")
    gap = float((scores[source] - scores[into]).mean())
    if abs(gap) < 1e-6:
        raise TraceError(f"the metric is {float(scores[into].mean()):.3g} in both runs: there is nothing to patch back")
    paths = _Paths(model, metric, ends[into], sender, values[source][sender], values[into], max(1, rows // pairs))
    moved = {"whole": paths.sent(where, []), "past all receivers": paths.sent(where, names)}
    moved |= {name: paths.through(where, name, [n for n in names if n != name]) for name in names}
    effects = {name: (score - scores[into]) / gap for name, score in moved.items()}  # (T, B)
    mean = {name: effect.mean(1).numpy() for name, effect in effects.items()}
    return PathPatch(
        sender=sender, direction=direction, clean=float(scores["clean"].mean()),
        corrupted=float(scores["corrupted"].mean()), pairs=pairs, steps=where,
        paths={name: mean[name] for name in names}, whole=mean["whole"], past=mean["past all receivers"],
        error={name: effect.std(1).numpy() / math.sqrt(pairs) for name, effect in effects.items()},
        provenance=Provenance.here(
            seeds={"noise": seed}, edits=tuple(e.describe() for e in model.edits), caveats=model.caveats
        ),
    )  # fmt: skip


@dataclasses.dataclass
class _Paths:
    model: Any
    metric: Metric
    into: Request
    sender: str
    donor: Tensor  # (B, T, *shape), the sender's values in the other run
    own: Mapping[str, Tensor]  # site -> values of the run that is patched
    at_once: int

    def sent(self, steps: Sequence[int], held: Sequence[str]) -> Tensor:
        """(T, B) the metric where the sender has the other value, and `held` say what they always did."""
        found = []
        for chunk in chunks(steps, self.at_once):
            with tracer_of(self.model, [self.into] * len(chunk), grad=False) as tracer:
                for number, t in enumerate(chunk):
                    with tracer.rows_of(number):
                        self._send(t, held)
            found.append(self.metric(tracer.out).unflatten(0, (len(chunk), self.into.rows)))
        return torch.cat(found)

    def through(self, steps: Sequence[int], receiver: str, others: Sequence[str]) -> Tensor:
        """(T, B) the metric where `receiver` alone saw the sender's other value."""
        found = []
        for chunk in chunks(steps, self.at_once):
            said = []
            with tracer_of(self.model, [self.into] * len(chunk), grad=False) as tracer:
                for number, t in enumerate(chunk):
                    with tracer.rows_of(number):
                        self._send(t, others)
                        said.append(self.model.site(receiver)[:, t : t + READ].save())
            with tracer_of(self.model, [self.into] * len(chunk), grad=False) as tracer:
                for number, t in enumerate(chunk):
                    with tracer.rows_of(number):
                        self.model.site(receiver).write(said[number], (slice(None), slice(t, t + READ)))
            found.append(self.metric(tracer.out).unflatten(0, (len(chunk), self.into.rows)))
        return torch.cat(found)

    def _send(self, t: int, held: Sequence[str]) -> None:
        self.model.site(self.sender).write(self.donor[:, t], (slice(None), t))
        for name in held:
            self.model.site(name).write(self.own[name][:, t : t + READ], (slice(None), slice(t, t + READ)))
