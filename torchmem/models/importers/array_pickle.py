"""Pickles that hold nothing but numbers: numpy arrays in plain containers. Anything else is refused by its name.

A pickle is a program; loading one runs it. This reader lets a file name only the functions that rebuild numpy arrays.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray, numeric

from torchmem.errors import TorchmemError

# Under the names of numpy 1 (numpy.core) and of numpy 2 (numpy._core).
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): multiarray.scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer for core in ("core", "_core")},  # protocol 5  # pyright: ignore[reportAttributeAccessIssue]
}


class PickleRefused(TorchmemError):
    """A pickle names something that is not an array, or cannot be read; the message names the file."""


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in ALLOWED:
            raise PickleRefused(f"{self.path} wants to call {module}.{name}: refused, only numpy arrays are read")
        return ALLOWED[module, name]


def load_arrays(path: str | Path) -> Any:
    """The content of a pickle of arrays, numbers, strings and containers.

    Raises PickleRefused on any other content, on a truncated file, and on arrays of Python objects.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, path).load()
    except PickleRefused:
        raise
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle can fail in any operation
        raise PickleRefused(f"{path} is not a complete pickle (truncated or altered?): {error}") from error
    _refuse_objects(content, path)
    return content


def _refuse_objects(content: Any, path: Path) -> None:
    if isinstance(content, dict):
        for value in content.values():
            _refuse_objects(value, path)
    elif isinstance(content, (list, tuple)):
        for value in content:
            _refuse_objects(value, path)
    elif isinstance(content, np.ndarray) and content.dtype.hasobject:
        raise PickleRefused(f"{path} holds an array of Python objects; only numbers are read")
