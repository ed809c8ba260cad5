"""`torchmem plot RUN...`: learning curves with bands over seeds and the reference levels of the task."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torchmem.files import atomic_write
from torchmem.training.curves import Run, aggregate, group_seeds, read_run
from torchmem.training.typed import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")
AXES = {"env_steps": "env steps", "agent_steps": "agent steps", "updates": "updates", "wall_s": "wall time (h)"}


def plot_runs(
    folders: Sequence[str | Path],
    x: str = "env_steps",
    y: Sequence[str] = ("eval/score",),
    ax: Axes | None = None,
) -> Axes:
    """Draw each group of seeds as median and interquartile range (rule: `curves.aggregate`) over its seeds, thin.

    x: env_steps, agent_steps, updates or wall_s. y: names of metrics; the second and later are dashed or dotted.
    Reference levels (chance, human, oracle of env_spec.json) are drawn where y is a score.
    Raises ConfigError for a folder that is no run or a metric that a run does not have.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import EngFormatter

    if ax is None:
        _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    if len(y) > len(STYLES):
        raise ConfigError(f"at most {len(STYLES)} metrics fit into one figure, got {len(y)}")
    scale = 1 / 3600 if x == "wall_s" else 1.0
    runs = [read_run(f) for f in folders]
    groups = group_seeds(runs)
    for number, (label, members) in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        for style, metric in zip(STYLES, y, strict=False):
            curve = aggregate(label, [run.series(x, metric) for run in members])
            count = len(curve.seeds)
            text = f"{label}{f' {metric}' if len(y) > 1 else ''} ({count} seed{'s' * (count > 1)})"
            single = len(curve.x) == 1  # one evaluation is a point, and a line would not show
            ax.plot(
                curve.x * scale,
                curve.middle,
                style,
                color=colour,
                lw=1.8,
                label=text,
                marker="o" if single else None,
                drawstyle="steps-post",
            )
            if count > 1:
                ax.fill_between(curve.x * scale, curve.low, curve.high, color=colour, alpha=0.2, lw=0, step="post")
                for seed_x, seed_y in curve.seeds:
                    ax.plot(seed_x * scale, seed_y, style, color=colour, lw=0.5, alpha=0.4, drawstyle="steps-post")
    ax.set_xlabel(AXES.get(x, x))
    ax.set_ylabel(", ".join(y))
    _draw_levels(ax, runs, y)
    ax.spines[["top", "right"]].set_visible(False)
    if x != "wall_s":
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k, 2M
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=1)
    return ax


def save_plot(
    folders: Sequence[str | Path], out: str | Path, x: str = "env_steps", y: Sequence[str] = ("eval/score",)
) -> Path:
    """`plot_runs` into a file (png, pdf, svg by its ending). Raises ValueError for another ending."""
    import matplotlib

    matplotlib.use("Agg")  # a figure for a file needs no window, and servers have none
    from matplotlib import pyplot as plt

    ax = plot_runs(folders, x, y)
    buffer = io.BytesIO()
    figure = cast("Figure", ax.get_figure())
    try:
        figure.savefig(buffer, format=Path(out).suffix.lstrip(".") or "png", dpi=150)
    finally:
        plt.close(figure)  # pyplot keeps its figures until they are closed
    return atomic_write(out, buffer.getvalue())


def _draw_levels(ax: Axes, runs: Sequence[Run], y: Sequence[str]) -> None:
    specs = {str(r.spec.kwargs) + r.spec.name: r.spec for r in runs if r.spec is not None}
    for spec in specs.values():
        if not any(metric.rsplit("/", 1)[-1] in ("score", spec.score) for metric in y):
            continue
        for name, level in spec.levels.items():
            ax.axhline(level, color="0.45", lw=1, ls=(0, (4, 3)), zorder=0)
            text = f"{name} {level:g}" + (f" ({spec.name})" if len(specs) > 1 else "")
            # In the right margin, where no curve runs.
            ax.annotate(text, (1.01, level), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="0.35")
