"""DreamBatch: imagined states beside the real steps that they are compared with. Made by `torchmem.studies.dreams`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AWAKE = "awake"  # the condition whose states were observed, not dreamed


@dataclasses.dataclass(frozen=True)
class DreamBatch(Result):
    """N rows of H + 1 states: where a dream begins (index 0), and the H states dreamed from there.

    actions: "policy" or "replayed". conditions: how dreams were begun; condition: (N,) which of these each row is.
    start: (N,) number of the real step a dream begins at (rows that share it differ in condition or noise alone).
    copy: (N,) number of the noise draw. episode, step: (N,) of that real step. warmup: (N,) steps observed until then,
    it included.
    states: site -> (N, H + 1, units) float32, NaN where there is none. taken: action key -> (N, H, ...) actions in the
    dream. real: (N, H + 1, 2) position at the same steps of the real episode, NaN after its end: so a dream is never
    compared with another episode. before: (N, B, 2) positions up to the start, NaN where not observed.
    wake: site -> (M, units) observed states, wake_episode: (M,) of these.
    """

    figure_size: ClassVar[tuple[float, float]] = (5.0, 4.5)

    target: str
    unit: str
    actions: str
    conditions: tuple[str, ...]
    condition: np.ndarray
    start: np.ndarray
    copy: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    warmup: np.ndarray
    states: dict[str, np.ndarray]
    taken: dict[str, np.ndarray]
    real: np.ndarray
    before: np.ndarray
    wake: dict[str, np.ndarray]
    wake_episode: np.ndarray
    settings: dict[str, Any]

    @property
    def horizon(self) -> int:
        """H."""
        return self.real.shape[1] - 1

    @property
    def valid(self) -> np.ndarray:
        """(N, H + 1) bool: the real episode has such a step."""
        return np.asarray(np.isfinite(self.real).all(-1))

    def summary(self) -> str:
        """How many dreams of what."""
        count = len(np.unique(self.start))
        sizes = ", ".join(f"{name} ({values.shape[-1]})" for name, values in self.states.items())
        lasting = self.valid[:, -1].mean()
        return (
            f"{len(self.start)} rows of {self.horizon} steps ({self.actions} actions) from {count} real steps of "
            f"{len(np.unique(self.episode))} episodes; conditions: {', '.join(self.conditions)}; sites: {sizes}; "
            f"{lasting:.0%} have a real step at the horizon"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Where dreams begin, and what really came next."""
        ax = self.axes(ax)
        first = np.unique(self.start, return_index=True)[1]
        for row in first[:100]:
            ax.plot(*self.real[row].T, lw=0.8, color=style.CONTROL_COLOUR)
        ax.plot(*self.real[first, 0].T, ".", color=style.COLOURS[0], ms=4, label="a dream begins")
        ax.set_aspect("equal", "datalim")
        ax.invert_yaxis()
        return style.finish(ax, f"x ({self.unit})", f"y ({self.unit})")

    @classmethod
    def join(cls, batches: Sequence[DreamBatch]) -> DreamBatch:
        """Pieces of one set of dreams as one. Raises ValueError where they differ in anything but rows."""
        first = batches[0]
        same = ("target", "unit", "actions", "conditions", "horizon")
        for other in batches[1:]:
            unlike = [name for name in same if getattr(other, name) != getattr(first, name)]
            if unlike or other.states.keys() != first.states.keys():
                raise ValueError(f"these are pieces of different dreams: {(unlike or ['sites'])[0]} differs")
        rows = {name: np.concatenate([getattr(b, name) for b in batches]) for name in
                ("condition", "start", "copy", "episode", "step", "warmup", "real", "before")}  # fmt: skip
        dicts = {name: {key: np.concatenate([getattr(b, name)[key] for b in batches]) for key in getattr(first, name)}
                 for name in ("states", "taken")}  # fmt: skip
        return dataclasses.replace(first, **rows, **dicts)
