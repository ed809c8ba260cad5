"""Results: what a measurement found, where it came from, and how to draw it. A leaf.

A new kind of result is a frozen dataclass of numbers, texts, arrays, dicts, lists and tuples, with two methods:

    @dataclasses.dataclass(frozen=True)
    class TuningResult(Result):
        score: float
        curve: np.ndarray  # (bins,)

        def summary(self) -> str:
            return f"score {self.score:.2f}"

        def plot(self, ax=None) -> Axes:
            ax = self.axes(ax)
            ax.plot(self.curve)
            return ax

It is made with `TuningResult(score=..., curve=..., provenance=rec.provenance.again())`, and saved and read with
`path = result.save("results/tuning")` and `load_result(path) == result`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.artefact import append_record, carry_log
from torchmem.errors import TorchmemError
from torchmem.files import atomic_write, sync_folder
from torchmem.provenance import Provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMAT = 1
CARD, ARRAYS, FIGURE = "result.json", "arrays.npz", "figure.png"
_KINDS: dict[str, type[Result]] = {}  # "module:Class" of every result type that this process has defined


class ResultError(TorchmemError):
    """A saved result cannot be read or written; the message names the file or field and the way out."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Base of everything that a measurement returns. Equal where all fields are, arrays bit for bit (NaN == NaN)."""

    figure_size: ClassVar[tuple[float, float]] = (6.0, 4.0)  # inches

    provenance: Provenance = dataclasses.field(kw_only=True)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _KINDS[f"{cls.__module__}:{cls.__qualname__}"] = cls
        # The dataclass decorator, which runs next, leaves methods alone that the class has: its own comparison would
        # fail on arrays.
        cls.__eq__, cls.__hash__ = Result.__eq__, Result.__hash__
        for name, warned in (("summary", _warned_summary), ("plot", _warned_plot)):
            if name in cls.__dict__:  # so that no kind of result can forget the caveats of its data
                setattr(cls, name, warned(cls.__dict__[name]))

    def summary(self) -> str:
        """The finding in a line or a small table, with its control beside it."""
        raise TypeError(f"{type(self).__name__} must define summary()")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw it into `ax` (from `self.axes(ax)`) and return that."""
        raise TypeError(f"{type(self).__name__} must define plot()")

    def axes(self, ax: Axes | None) -> Axes:
        """`ax`, or the axes of a new figure."""
        if ax is not None:
            return ax
        from matplotlib import pyplot as plt

        return plt.subplots(figsize=self.figure_size, layout="constrained")[1]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder `path`: result.json, arrays.npz and figure.png, complete or not at all. Returns the folder.

        Its provenance.jsonl gets one more line (`torchmem provenance path`).

        Raises FileExistsError where `path` holds something and `overwrite` is False (or it is not a result), and
        ResultError naming a field that neither JSON nor npz can hold.
        """
        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            if not overwrite:
                raise FileExistsError(f"{path} already exists: choose another folder, or pass overwrite=True")
            if not (path / CARD).is_file():
                raise FileExistsError(f"{path} is not a result ({CARD} is missing), so it is not overwritten")
        arrays: dict[str, np.ndarray] = {}
        fields = [f.name for f in dataclasses.fields(self) if f.name != "provenance"]
        card: dict[str, Any] = {
            "format": FORMAT,
            "type": f"{type(self).__module__}:{type(self).__qualname__}",
            "summary": self.summary(),
            "fields": {name: _encode(getattr(self, name), (name,), arrays) for name in fields},
            "provenance": self.provenance.to_json(),
        }
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            content = io.BytesIO()
            np.savez(content, allow_pickle=False, **arrays)
            atomic_write(part / ARRAYS, content.getvalue())
            card["arrays_sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
            atomic_write(part / FIGURE, self.png())
            atomic_write(part / CARD, _json(card, "provenance"))
            carry_log(path, part)
            append_record(part, self.provenance, artefact=str(path.absolute()))
            _put(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return path

    def png(self) -> bytes:
        """Its figure as a PNG file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.figure_size, layout="constrained")  # without pyplot, which would keep it
        self.plot(figure.subplots())
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=150)
        return content.getvalue()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(same(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))

    def __hash__(self) -> int:
        return hash((type(self), self.provenance.date))


def _warned_summary(summary: Callable[[Any], str]) -> Callable[[Any], str]:
    @functools.wraps(summary)
    def warned(self: Result) -> str:
        text = summary(self)
        return "\n".join([text, *(f"CAVEAT: {one}" for one in self.provenance.caveats if one not in text)])

    return warned


def _warned_plot(plot: Callable[..., Axes]) -> Callable[..., Axes]:
    @functools.wraps(plot)
    def warned(self: Result, *given: Any, **named: Any) -> Axes:
        ax = plot(self, *given, **named)
        if (figure := ax.get_figure(root=True)) is not None:
            mark_figure(figure, self.provenance.caveats)
        return ax

    return warned


def mark_figure(figure: Figure, caveats: Sequence[str]) -> None:
    """Write caveats below a figure, once each."""
    old = figure.get_supxlabel()
    text = "\n".join([*([old] if old else []), *(one for one in caveats if one not in old)])
    if text != old:
        figure.supxlabel(text, size=7, color="#D55E00")


def save_figures(figures: Mapping[str, Figure], folder: str | Path, caveats: Sequence[str]) -> list[Path]:
    """Each figure with its caveats as <name>.png and <name>.svg in a folder; closed afterwards. Returns the files."""
    from matplotlib import pyplot as plt

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        mark_figure(figure, caveats)
        for ending, about in (("png", {}), ("svg", {"Date": None})):  # without the date: equal figures, equal files
            paths.append(folder / f"{name}.{ending}")
            with plt.rc_context({"svg.hashsalt": name}):  # its ids are random otherwise
                figure.savefig(paths[-1], dpi=150, metadata=about)
        plt.close(figure)
    return paths


def _put(part: Path, path: Path) -> None:
    """Move a finished folder to its place; what was there is only removed once the new one has taken over."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(part, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


def load_result(path: str | Path) -> Result:
    """The result that `save` wrote, as the type it had.

    Raises ResultError where a file is missing, altered or of a type that neither torchmem nor this process defines.
    """
    file = Path(path) / CARD
    try:
        card = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise ResultError(f"{file} is missing: {path} is not a saved result") from error
    except ValueError as error:
        raise ResultError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ResultError(f"{file} is not a result of format {FORMAT}: use the torchmem that wrote it")
    kind = _kind(card["type"], file)
    arrays = _read_arrays(file.with_name(ARRAYS), card["arrays_sha256"])
    values = {name: _decode(value, arrays) for name, value in card["fields"].items()}
    try:
        return kind(**values, provenance=Provenance.from_json(card["provenance"]))
    except TypeError as error:
        raise ResultError(f"{file} does not fit today's {card['type']}: {error}") from error


def _kind(name: str, file: Path) -> type[Result]:
    module = name.partition(":")[0]
    if name not in _KINDS and module.startswith("torchmem."):  # no other module is imported on a file's word
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ResultError(f"{file} is a {name}, but {error}") from error
    if name not in _KINDS:
        raise ResultError(f"{file} is a {name}, which is not defined here: import {module} first")
    return _KINDS[name]


def _read_arrays(file: Path, digest: str) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise ResultError(f"{file} is missing: the result is incomplete")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ResultError(f"{file} was altered or truncated: it is not what {CARD} describes")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


# Values as JSON, with arrays beside it. A dict with one key that begins with "$" stands for something JSON lacks. ---


def _encode(value: Any, where: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, float) and not isinstance(value, np.generic):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise ResultError(f"{'.'.join(where)} is an array of Python objects: give it a numeric or text dtype")
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", ".".join(where))
        # "file" and "allow_pickle" are arguments of numpy.savez
        name = next(n for i in range(len(arrays) + 2) if (n := f"{stem}.{i}" if i else stem) not in arrays
                    and n not in ("file", "allow_pickle"))  # fmt: skip
        arrays[name] = array
        return {"$array": name} if isinstance(value, np.ndarray) else {"$scalar": name}
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value) or any(k.startswith("$") for k in value):
            pairs = [[_encode(k, (*where, "key"), arrays), _encode(v, (*where, str(k)), arrays)]
                     for k, v in value.items()]  # fmt: skip
            return {"$dict": pairs}
        return {k: _encode(v, (*where, k), arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(v, (*where, str(i)), arrays) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    holds = "numbers, texts, numpy arrays, dicts, lists and tuples"
    raise ResultError(f"{'.'.join(where)} is a {type(value).__name__}: a result holds {holds}")


def _decode(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(v, arrays) for v in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "") if len(value) == 1 else ""
    if not mark.startswith("$"):
        return {k: _decode(v, arrays) for k, v in value.items()}
    inner = value[mark]
    if mark == "$array":
        return arrays[inner]
    if mark == "$scalar":
        return arrays[inner][()]
    if mark == "$float":
        return float(inner)
    if mark == "$tuple":
        return tuple(_decode(v, arrays) for v in inner)
    return {_decode(k, arrays): _decode(v, arrays) for k, v in inner}


def _json(card: Mapping[str, Any], field: str) -> str:
    try:
        return json.dumps(card, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ResultError(f"{field} holds something that JSON cannot: {error}") from error


def same(a: Any, b: Any) -> bool:
    """Equal in value, type of container, shape and dtype; NaN equals NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
            return False
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return isinstance(a, list) == isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return bool(a == b or (a != a and b != b))
