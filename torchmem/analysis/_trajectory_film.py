"""Films of paths.

view    left the world around the agent, with what it sees of it (box), where it looks (arrow), its trail, and other
        agents: the same step of other episodes (ghosts); right its observation; below step, action and return
paths   the world with trails that fade, the episodes one after the other, those that are over as thin lines
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.files import atomic_write
from torchmem.video import film_bytes

if TYPE_CHECKING:
    from torchmem.analysis._trajectory_result import TrajectoriesResult

TILE = 16  # pixels of a tile in a film
TRAIL = 40  # steps that are remembered
LARGEST = 32  # pixels of a tile where the world is small
LINE = 14  # pixels of a line of text
WIDE, TALL = 640, 640  # pixels of a film of paths, at most
CROP = 6  # tiles around what was visited
TEAL, ORANGE, GHOST, BOX = (0, 114, 178), (213, 94, 0), (120, 120, 120), (255, 255, 255)


def write_film(
    result: TrajectoriesResult, path: Path, recording: Any, kind: str, episode: int | None, fps: float, window: int,
    steps: int,
) -> Path:  # fmt: skip
    """kind: "view" or "paths". episode: its number in the recording; None: the one with the highest return (view), all
    of them (paths). window: tiles on a side. steps: at most so many frames of a view from its beginning; paths are
    thinned out to so many. Raises ValueError for what does not exist."""
    if kind not in ("view", "paths"):
        raise ValueError(f"kind={kind!r}: view or paths")
    if fps <= 0 or steps < 2 or window < 3:
        raise ValueError(f"fps must be above 0, steps at least 2, window at least 3; got {fps}, {steps} and {window}")
    there = {int(result.episode[rows[0]]): i for i, rows in enumerate(result.pieces)}
    if episode is not None and episode not in there:
        raise ValueError(f"episode {episode} is not among the {len(there)} drawn, such as {list(there)[:5]}")
    chosen = None if episode is None else there[episode]
    frames = (
        _view(result, recording, int(result.returns.argmax()) if chosen is None else chosen, window, steps)
        if kind == "view" else _paths(result, chosen, steps)
    )  # fmt: skip
    marked = [_captioned(frame, result.provenance.caveats) for frame in frames]
    return atomic_write(path, film_bytes(np.stack(marked), fps, path.suffix))


def _view(result: TrajectoriesResult, recording: Any, number: int, window: int, limit: int) -> Iterator[np.ndarray]:
    from PIL import Image, ImageDraw

    steps = result.pieces[number][:limit]
    places = result.places
    side = window * TILE
    ground, origin = _ground(result, window)
    seen = _observations(recording, result.rows[steps], side)
    totals = _running_return(recording, result.rows[steps])
    for t, row in enumerate(steps):
        x, y = np.floor(places[row]).astype(int) - window // 2
        left, top = (x - origin[0]) * TILE, (y - origin[1]) * TILE
        picture = Image.fromarray(ground[top : top + side, left : left + side])
        pen = ImageDraw.Draw(picture)

        def on(place: np.ndarray, x: int = x, y: int = y) -> tuple[float, float]:
            return float((place[0] - x) * TILE), float((place[1] - y) * TILE)

        for other, rows in enumerate(result.pieces):
            if other != number and t < len(rows):
                _dot(pen, on(places[rows[t]]), TILE * 0.25, GHOST)
        _trail(pen, [on(place) for place in places[steps[max(0, t - TRAIL) : t + 1]]])
        _box(pen, result, on, places[row], float(result.heading[row]))
        _agent(pen, on(places[row]), float(result.heading[row]))
        parts = [np.asarray(picture)] if seen is None else [np.asarray(picture), seen[t]]
        yield np.concatenate([np.concatenate(parts, 1), _text(_label(result, steps, t, totals), side * len(parts))])


def _paths(result: TrajectoriesResult, only: int | None, limit: int) -> Iterator[np.ndarray]:
    from PIL import Image, ImageDraw

    places = result.places
    low = np.maximum(np.floor(places.min(0)).astype(int) - CROP, result.origin)
    high = np.minimum(np.ceil(places.max(0)).astype(int) + CROP, _end(result))
    size = high - low
    tile = int(np.clip(min(WIDE // size[0], TALL // size[1]), 2, LARGEST))
    first, last = (low - result.origin) * result.pixels, (high - result.origin) * result.pixels
    cut = result.picture[first[1] : last[1], first[0] : last[0]]
    base = Image.fromarray(cut).resize((int(size[0] * tile), int(size[1] * tile)), Image.Resampling.NEAREST)
    pieces = [rows for i, rows in enumerate(result.pieces) if only in (None, i)]
    every = -(-sum(map(len, pieces)) // limit)
    for rows in pieces:
        on = [(float(x), float(y)) for x, y in (places[rows] - low) * tile]
        for t in sorted({*range(0, len(rows), every), len(rows) - 1}):
            picture = base.copy()
            pen = ImageDraw.Draw(picture)
            _trail(pen, on[max(0, t - TRAIL * every) : t + 1])
            _agent(pen, on[t], float(result.heading[rows[t]]), tile)
            words = f"episode {int(result.episode[rows[0]])}, step {t} of {len(rows) - 1}"
            yield np.concatenate([np.asarray(picture), _text(words, picture.width)])
        if len(on) > 1:
            ImageDraw.Draw(base).line(on, fill=GHOST, width=1)  # over: a ghost


def _ground(result: TrajectoriesResult, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(picture with TILE pixels per tile and a margin of a window, the tile of its corner)."""
    from PIL import Image

    height, width = result.picture.shape[:2]
    size = (width * TILE // result.pixels, height * TILE // result.pixels)
    large = np.asarray(Image.fromarray(result.picture).resize(size, Image.Resampling.NEAREST))
    margin = window * TILE
    edge = 30 if result.source else 244
    padded = np.pad(large, ((margin, margin), (margin, margin), (0, 0)), constant_values=edge)
    return padded, np.array(result.origin) - window


def _end(result: TrajectoriesResult) -> np.ndarray:
    return np.array(result.origin) + np.array(result.picture.shape[1::-1]) // result.pixels


def _observations(recording: Any, rows: np.ndarray, side: int) -> np.ndarray | None:
    """(T, side, side, 3): the first recorded image of an observation, or None."""
    from PIL import Image

    if recording is None:
        return None
    names = [n for n, c in recording.covariates.items() if n.startswith("obs.") and c.shape[1:][2:] == (3,)]
    if not names:
        return None
    images = np.asarray(recording.covariates[names[0]][rows])
    if images.dtype != np.uint8:
        return None
    large = [Image.fromarray(one).resize((side, side), Image.Resampling.NEAREST) for one in images]
    return np.stack([np.asarray(one) for one in large])


def _running_return(recording: Any, rows: np.ndarray) -> np.ndarray | None:
    if recording is None or "reward" not in recording.covariates:
        return None
    return np.cumsum(np.asarray(recording.covariates["reward"][rows]))


def _label(result: TrajectoriesResult, steps: np.ndarray, t: int, totals: np.ndarray | None) -> str:
    words = [f"episode {int(result.episode[steps[0]])}, step {t}"]
    action = int(result.action[steps[t]])
    if action >= 0 and t + 1 < len(steps):
        named = result.actions[action] if action < len(result.actions) else f"action {action}"
        still = action in result.moves and (result.pos[steps[t]] == result.pos[steps[t + 1]]).all()
        words.append(named + " (blocked)" * bool(still))
    if totals is not None:
        words.append(f"return {totals[t]:.1f}")
    return "; ".join(words)


def _box(pen: Any, result: TrajectoriesResult, on: Any, place: np.ndarray, heading: float) -> None:
    """The tiles in view."""
    columns, rows = result.view
    if not columns or (result.turned and not np.isfinite(heading)):
        return
    if not result.turned:
        x, y = columns / 2, rows / 2
        corners = [(-x, -y), (x, -y), (x, y), (-x, y)]
    else:  # the agent's tile is in the middle of the lowest row
        ahead, right = _ways(heading)
        spans = ((-columns / 2, -0.5), (columns / 2, -0.5), (columns / 2, rows - 0.5), (-columns / 2, rows - 0.5))
        corners = [tuple(a * right + f * ahead) for a, f in spans]
    shape = [on(place + np.array(corner)) for corner in corners]
    pen.polygon(shape, outline=GHOST, width=4)  # a dark edge, for pale ground
    pen.polygon(shape, outline=BOX, width=2)


def _ways(heading: float) -> tuple[np.ndarray, np.ndarray]:
    """(ahead, right) as (x, y), y down."""
    ahead = np.array([np.cos(heading), np.sin(heading)])
    return ahead, np.array([-ahead[1], ahead[0]])


def _agent(pen: Any, at: tuple[float, float], heading: float, tile: int = TILE) -> None:
    _dot(pen, at, tile * 0.3, ORANGE)
    if np.isfinite(heading):
        ahead, right = _ways(heading)
        tip = np.array(at) + ahead * tile * 0.95
        pen.line([at, tuple(tip)], fill=ORANGE, width=3)
        wings = [tuple(tip - ahead * tile * 0.35 + side * right * tile * 0.25) for side in (-1, 1)]
        pen.polygon([tuple(tip + ahead * 2), *wings], fill=ORANGE)


def _trail(pen: Any, places: list[tuple[float, float]]) -> None:
    """Older parts are paler."""
    for i in range(1, len(places)):
        fresh = i / len(places)
        colour = tuple(int(fresh * c + (1 - fresh) * 235) for c in TEAL)
        pen.line([places[i - 1], places[i]], fill=colour, width=2)


def _dot(pen: Any, at: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    pen.ellipse([at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius], fill=colour, outline=BOX)


def _text(words: str, width: int, colour: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    """(LINE, width, 3), black on white."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, LINE), (255, 255, 255))
    ImageDraw.Draw(strip).text((3, 1), words, fill=colour)
    return np.asarray(strip)


def _captioned(frame: np.ndarray, caveats: tuple[str, ...]) -> np.ndarray:
    """Caveats in as many lines as they need, and sides of an even number of pixels, as videos want them."""
    import textwrap

    lines = [line for one in caveats for line in textwrap.wrap(one, max(20, frame.shape[1] // 6))]
    whole = np.concatenate([frame, *(_text(line, frame.shape[1], ORANGE) for line in lines)])
    return np.pad(whole, ((0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)), constant_values=255)
