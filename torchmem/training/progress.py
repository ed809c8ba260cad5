"""`torchmem plot RUN --progress`: one run on one page, a panel for everything that its log holds."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.envs.crafter import ACHIEVEMENTS
from torchmem.files import atomic_write
from torchmem.models.importers.dreamerv3f_logs import crafter_score
from torchmem.result import mark_figure
from torchmem.training.curves import Run, Series, read_run
from torchmem.training.plot import AXES, COLOURS
from torchmem.training.typed import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAK = "train/loss/player_pos"  # that the agent learnt to reconstruct its position means that it was given it
# how logs call the counts of one achievement in an episode: of torchmem, and two versions of vviggyy/dreamerv3f
UNLOCKED = ("eval/achievement/{}", "episode/achievement_{}", "epstats/log/achievement_{}/sum")


def plot_progress(folder: str | Path, x: str = "env_steps", smooth: int = 50) -> Figure:
    """Returns, Crafter's score and unlock rates, losses, imagined returns and values, entropies and KL over training.

    Lines of noisy metrics are means over `smooth` rows (fewer in a short log), with the ends left out; the rows are
    dots. Crafter's score is the official one, over all 22 achievements: as evaluation has it, or of the last `smooth`
    episodes of an imported log. Raises ConfigError for a folder that is no run, a log without any of this, smooth < 1.
    """
    from matplotlib import pyplot as plt

    if smooth < 1:
        raise ConfigError(f"smooth={smooth}: at least 1 row")
    run = read_run(folder)
    if not any(x in row for row in run.rows):
        raise ConfigError(f"{folder} has no metric {x!r}: choose one of {', '.join(AXES)} that it has")
    panels = [(title, draw) for title, found, draw in _panels(run, x, smooth) if found]
    if not panels:
        raise ConfigError(f"{folder} logs no return, loss, value or achievement: there is nothing to draw")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.4 * rows), layout="constrained", squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, draw) in zip(axes.flat, panels):
        draw(ax)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(AXES[x])
        ax.spines[["top", "right"]].set_visible(False)
        if (handles := ax.get_legend_handles_labels()[0]) and len(handles) < 12:
            ax.legend(fontsize=7, ncols=2, framealpha=0.7, edgecolor="none")
    if any(LEAK in row for row in run.rows):
        mark_figure(figure, ["the agent was given its position (player_pos) as an input"])
    return figure


def save_progress(folder: str | Path, out: str | Path, x: str = "env_steps", smooth: int = 50) -> Path:
    """`plot_progress` into a file (png, pdf, svg by its ending)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, buffer = plot_progress(folder, x, smooth), io.BytesIO()
    try:
        figure.savefig(buffer, format=Path(out).suffix.lstrip(".") or "png", dpi=150)
    finally:
        plt.close(figure)
    return atomic_write(out, buffer.getvalue())


def _panels(run: Run, x: str, smooth: int) -> list[tuple[str, bool, Callable[[Axes], None]]]:
    """(title, whether the log has it, how to draw it)."""
    scale = 1 / 3600 if x == "wall_s" else 1.0
    names = sorted({name for row in run.rows for name, value in row.items() if isinstance(value, int | float)})

    def series(name: str) -> Series:
        at, values = run.series(x, name)
        return at * scale, values

    def dots(ax: Axes, name: str, number: int, label: str) -> None:
        at, values = series(name)
        ax.plot(at, values, ".", ms=2.5, color=COLOURS[number % len(COLOURS)], alpha=0.35)
        window = max(1, min(smooth, len(values) // 5))
        middle = moving_mean(values, window)
        ax.plot(at, middle, lw=1.6, color=COLOURS[number % len(COLOURS)], label=f"{label}, mean of {window} rows")

    def returns(ax: Axes) -> None:
        for number, name in enumerate(score):
            if name.startswith("eval/"):
                ax.plot(*series(name), "o-", ms=3, lw=1.4, color=COLOURS[number % len(COLOURS)], label=name)
            else:
                dots(ax, name, number, name)

    def lines(chosen: Sequence[str], cut: str, log: bool) -> Callable[[Axes], None]:
        def draw(ax: Axes) -> None:
            for number, name in enumerate(chosen):
                at, values = series(name)
                middle = moving_mean(values, max(1, min(smooth // 10, len(values) // 20)))
                ax.plot(at, np.where(middle > 0, middle, np.nan) if log else middle, lw=1.2,
                        color=COLOURS[number % len(COLOURS)], ls="-" if number < len(COLOURS) else "--",
                        label=name.removeprefix(cut))  # fmt: skip
            if log:
                ax.set_yscale("log")

        return draw

    def cumulative(ax: Axes) -> None:
        at, values = series("episode/return")
        ax.plot(at, np.cumsum(values), lw=1.4, color=COLOURS[0])

    score = [name for name in ("episode/return", "eval/score") if name in names]
    losses = [name for name in names if name.startswith("train/loss/") and name != "train/loss/total"]
    values = [name for name in ("train/rew", "train/ret", "train/val", "train/adv") if name in names]
    spread = [name for name in names if name.startswith("train/ent/") or name in ("train/kl", "train/dyn_ent")]
    episodes = "imported" in run.config  # a row per episode; torchmem's own rows are means over an interval
    rates = _unlock_rates(run, x, smooth)
    return [
        ("return", bool(score), returns),
        ("Crafter score (%)", bool(rates), lambda ax: _draw_score(ax, rates, run, series, smooth, scale)),
        ("unlock rates (%)", bool(rates), lambda ax: _draw_rates(ax, rates, scale)),
        ("losses", bool(losses), lines(losses, "train/loss/", True)),
        ("imagined reward, return, value", bool(values), lines(values, "train/", False)),
        ("entropy and KL (nats)", bool(spread), lines(spread, "train/", False)),
        ("sum of all returns", episodes and "episode/return" in names, cumulative),
    ]


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """(N,) centred means of `window` values, NaN at the ends; of all values where there are fewer in all."""
    window = min(window, len(values))
    out = np.full(len(values), np.nan)
    first = (window - 1) // 2
    out[first : first + len(values) - window + 1] = np.convolve(values, np.full(window, 1 / window), "valid")
    return out


def _unlock_rates(run: Run, x: str, smooth: int) -> Mapping[str, Series]:
    """Achievement -> (x, success rate in percent), of evaluations or of the last `smooth` episodes."""
    for pattern in UNLOCKED:
        found = {}
        for name in ACHIEVEMENTS:
            key = pattern.format(name)
            if any(isinstance(row.get(key), int | float) and x in row for row in run.rows):
                at, values = run.series(x, key)
                if not pattern.startswith("eval/"):  # counts per episode; a rate needs a window
                    known = np.cumsum(np.concatenate([[0], values > 0]))
                    size = np.minimum(np.arange(1, len(values) + 1), smooth)
                    values = (known[1:] - known[np.arange(1, len(values) + 1) - size]) / size
                found[name] = (at, 100 * values)
        if found:
            return found
    return {}


def _draw_score(
    ax: Axes, rates: Mapping[str, Series], run: Run, series: Callable[[str], Series], smooth: int, scale: float
) -> None:
    if any("eval/crafter_score" in row for row in run.rows):
        at, middle = series("eval/crafter_score")
        low, high = series("eval/crafter_score_low")[1], series("eval/crafter_score_high")[1]
        ax.fill_between(at, low, high, alpha=0.2, lw=0, color=COLOURS[0])
        ax.plot(at, middle, "o-", ms=3, color=COLOURS[0], label="of evaluations, 95 %")
        return
    grid = np.unique(np.concatenate([at for at, _ in rates.values()]))
    table = np.zeros((len(ACHIEVEMENTS), len(grid)))  # one that is never logged was never unlocked
    for number, name in enumerate(ACHIEVEMENTS):
        if name in rates:
            at, values = rates[name]
            where = np.searchsorted(at, grid, side="right") - 1
            table[number] = np.where(where >= 0, values[where], 0)
    ax.plot(grid * scale, [crafter_score(column.tolist()) for column in table.T], color=COLOURS[0],
            label=f"of the last {smooth} episodes")  # fmt: skip


def _draw_rates(ax: Axes, rates: Mapping[str, Series], scale: float) -> None:
    """The achievements that were ever unlocked, the commonest in colour and named."""
    ever = sorted((one for one in rates.items() if one[1][1].any()), key=lambda one: -one[1][1][-1])
    for number, (name, (at, values)) in enumerate(ever):
        named: dict[str, Any] = {"color": "0.75"}
        if number < len(COLOURS):
            named = {"color": COLOURS[number], "label": name}
        ax.plot(at * scale, values, lw=1.2, **named)
    ax.set_ylim(-2, 102)
