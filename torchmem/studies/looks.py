"""What a step of a world looks like: pictures of what was shown, and names of the actions. For eyes only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from torchmem.types import EnvSpec

PROCGEN = ("↙", "←", "↖", "↓", "none", "↑", "↘", "→", "↗", "D", "A", "W", "S", "Q", "E")
MINIGRID = ("turn left", "turn right", "forward", "pick up", "drop", "toggle", "done")


def action_names(spec: EnvSpec) -> tuple[str, ...]:
    """Of the only discrete choice of a world; () where there is no such."""
    choices = [space.classes or 2 for space in spec.action.values() if space.discrete and not space.shape]
    if len(choices) != 1 or len(spec.action) != 1:
        return ()
    known = PROCGEN if spec.name == "procgen" else MINIGRID if spec.name.startswith("minigrid") else ()
    return known[: choices[0]] if len(known) >= choices[0] else tuple(str(i) for i in range(choices[0]))


def image_key(spec: EnvSpec) -> str | None:
    """The observation that is a picture already, if any: uint8 with one or three channels."""
    return next((key for key, s in spec.obs.items() if s.image and s.shape[-1] in (1, 3)), None)


def view_side(spec: EnvSpec) -> int:
    """Cells along a side of a MiniGrid view shown in one-hot numbers or in layers; 0 for other worlds."""
    if not spec.name.startswith("minigrid"):
        return 0
    if "view" in spec.obs and len(spec.obs["view"].shape) == 1:
        return round((spec.obs["view"].size / _codes()) ** 0.5)
    return spec.obs["object"].shape[0] if "object" in spec.obs else 0


def pictures(spec: EnvSpec, obs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """obs[key] (S, ...) -> (S, H, W, 3) uint8; None where what is shown is no picture and cannot be drawn as one.

    A simulated MiniGrid view is drawn with the likeliest symbol in each cell.
    """
    if (key := image_key(spec)) is not None:
        shown = np.asarray(obs[key])
        return shown if shown.shape[-1] == 3 else np.repeat(shown, 3, -1)
    side = view_side(spec)
    if not side:
        return None
    from torchmem.envs.minigrid_views import LAYERS, picture

    if "view" in obs:
        hot = np.asarray(obs["view"], np.float32).reshape(-1, side, side, _codes())
        ends = np.cumsum(list(LAYERS.values()))
        codes = np.stack([part.argmax(-1) for part in np.split(hot, ends[:-1], -1)], -1)
    else:
        codes = np.stack([np.asarray(obs[name]) for name in LAYERS], -1)
    codes = codes.astype(np.uint8)
    codes[codes[..., 0] == 10] = (1, 0, 0)  # the agent itself, which minigrid does not draw from a code
    codes[codes[..., 2] > 2] = (1, 0, 0)  # no such state of a door: only simulated views hold one
    kinds, which = np.unique(codes.reshape(len(codes), -1), axis=0, return_inverse=True)
    drawn = np.stack([picture(one.reshape(side, side, 3)) for one in kinds])
    return drawn[which.reshape(-1)]


def cell_sums(spec: EnvSpec, values: np.ndarray) -> np.ndarray:
    """Numbers for each entry of a one-hot MiniGrid view (..., V) -> summed per cell, as drawn: (..., rows, columns)."""
    side = view_side(spec)
    return np.swapaxes(values.reshape(*values.shape[:-1], side, side, _codes()).sum(-1), -1, -2)


def _codes() -> int:
    from torchmem.envs.minigrid_views import LAYERS

    return sum(LAYERS.values())


def strip(numbers: np.ndarray, cell: int = 12, line: int = 24) -> np.ndarray:
    """Numbers (N,) as a picture (H, W, 3) uint8, `line` cells across: blue above zero, red below, full at 1."""
    share = np.clip(np.nan_to_num(numbers.astype(np.float64)), -1, 1)
    ends = np.where(share[:, None] > 0, [20.0, 90.0, 200.0], [210.0, 50.0, 30.0])
    colour = 235 + np.abs(share)[:, None] * (ends - 235)
    across = min(len(numbers), line)
    cells = np.full((-(-len(numbers) // across) * across, 3), 255.0)
    cells[: len(numbers)] = colour
    return np.kron(cells.reshape(-1, across, 3), np.ones((cell, cell, 1))).round().astype(np.uint8)
