"""How every figure of this room looks. matplotlib is imported by those who draw, never here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CONTROL_COLOUR = "0.45"
CONTROL_MARKERS = ("s", "D", "^", "v", "<", ">", "P")


def finish(ax: Axes, xlabel: str, ylabel: str, *, legend_columns: int = 3) -> Axes:
    """Labels, two spines, and the legend above the axes, where it hides no data."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=legend_columns)
    return ax


def number(value: float, digits: int = 3) -> str:
    """"0.731", or "-" where there is no number."""
    return "-" if not math.isfinite(value) else f"{value:.{digits}f}"


def as_json(values: Mapping[str, Any]) -> str:
    """JSON text of numbers, texts, arrays and containers; a number that does not exist is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic | list | tuple):
            found = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
            return [plain(v) for v in found] if isinstance(found, list | tuple) else plain(found)
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(values), indent=1, allow_nan=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
