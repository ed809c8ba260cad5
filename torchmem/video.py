"""Frames -> GIF and PNG bytes, with pillow alone (TensorBoard's own video needs moviepy); MP4 where ffmpeg is."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

FORMATS = (".gif", ".mp4")


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """frames: (T, H, W, 3) uint8 -> an endless GIF. Raises ValueError for another shape or dtype."""
    _check(frames, 4)
    from PIL import Image

    pictures = [Image.fromarray(f) for f in frames]
    buffer = io.BytesIO()
    duration_ms = max(round(1000 / fps / 10) * 10, 20)  # GIF counts hundredths; players slow anything below 20 ms down
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0)
    return buffer.getvalue()


def film_bytes(frames: np.ndarray, fps: float, ending: str) -> bytes:
    """frames: (T, H, W, 3) uint8 as a film of the format that `ending` (".gif", ".mp4") names. Raises ValueError."""
    if ending.lower() not in FORMATS:
        raise ValueError(f"a film is a {' or '.join(FORMATS)} file, not {ending or 'one without an ending'}")
    return gif_bytes(frames, fps) if ending.lower() == ".gif" else mp4_bytes(frames, fps)


def mp4_bytes(frames: np.ndarray, fps: float) -> bytes:
    """frames: (T, H, W, 3) uint8 of even height and width -> H.264. Raises ValueError, also where ffmpeg is missing."""
    _check(frames, 4)
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"an mp4 needs an even height and width, got {frames.shape[1:3]}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "film.mp4"
        words = [ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
        words += ["-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", f"{fps:g}", "-i", "-", "-an", "-c:v", "libx264"]
        words += ["-pix_fmt", "yuv420p", "-crf", "18", "-movflags", "+faststart", str(out)]
        done = subprocess.run(words, input=np.ascontiguousarray(frames).tobytes(), capture_output=True)
        if done.returncode:
            raise ValueError(f"{words[0]} failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
        return out.read_bytes()


def ffmpeg() -> str:
    """The program: on the PATH, or the one that the package imageio-ffmpeg brings. Raises ValueError."""
    if (found := shutil.which("ffmpeg")) is not None:
        return found
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError("an mp4 needs ffmpeg: install it, or the package imageio-ffmpeg, or write a .gif")
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

    return imageio_ffmpeg.get_ffmpeg_exe()


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
