"""Frames -> GIF and PNG bytes, with pillow alone (TensorBoard's own video needs moviepy)."""

from __future__ import annotations

import io

import numpy as np


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """frames: (T, H, W, 3) uint8 -> an endless GIF. Raises ValueError for another shape or dtype."""
    _check(frames, 4)
    from PIL import Image

    pictures = [Image.fromarray(f) for f in frames]
    buffer = io.BytesIO()
    duration_ms = max(round(1000 / fps / 10) * 10, 20)  # GIF counts hundredths; players slow anything below 20 ms down
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0)
    return buffer.getvalue()


def png_bytes(image: np.ndarray) -> bytes:
    """image: (H, W, 3) uint8. Raises ValueError for another shape or dtype."""
    _check(image, 3)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _check(array: np.ndarray, ndim: int) -> None:
    if array.dtype != np.uint8 or array.ndim != ndim or array.shape[-1] != 3 or 0 in array.shape:
        want = "(T, H, W, 3)" if ndim == 4 else "(H, W, 3)"
        raise ValueError(f"expected {want} uint8 frames, got {array.shape} {array.dtype}")
