"""Arrays inside a page: quantised, deflated, in base64. web/data.js unpacks them when they are asked for.

    {"kind": "u1" | "i1" | "i2", "shape": [...], "scale": s, "data": "..."}

With a scale the numbers are kind * s and the smallest of the kind (-128, -32768) stands for none (NaN).
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

LEVELS = 31  # of a picture of gradients, either side of zero: more are not seen, and do not compress


def pack(values: Any) -> dict[str, Any]:
    """bool and uint8 as they are; integers as int16; floats as int16 with one scale. Raises ValueError beyond."""
    array = np.asarray(values)
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        return _packed(array.astype(np.uint8), "u1")
    if array.dtype.kind in "iu":
        if array.size and (array.min() < -32768 or array.max() > 32767):
            raise ValueError(f"integers from {array.min()} to {array.max()} do not fit the page's 16 bits")
        return _packed(array.astype(np.int16), "i2")
    return _scaled(array, np.int16, 32767)


def pack_picture(values: np.ndarray) -> dict[str, Any]:
    """Signed numbers that are only looked at, in 63 levels."""
    return _scaled(values, np.int8, LEVELS)


def _scaled(array: np.ndarray, dtype: Any, levels: int) -> dict[str, Any]:
    good = np.isfinite(array)
    top = float(np.abs(array[good]).max()) if good.any() else 0.0
    scale = top / levels or 1.0
    steps = np.where(good, np.rint(np.where(good, array, 0) / scale), np.iinfo(dtype).min).astype(dtype)
    return _packed(steps, "i1" if dtype is np.int8 else "i2") | {"scale": float(f"{scale:.7g}")}


def _packed(array: np.ndarray, kind: str) -> dict[str, Any]:
    data = zlib.compress(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes(), 9)
    return {"kind": kind, "shape": list(array.shape), "data": base64.b64encode(data).decode()}
