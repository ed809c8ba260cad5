"""What mask and delta share: parameters by name, and w_effective = f(w)."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from torchmem import __version__
from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.surgery.edit import Edit, tensor_bytes

FORMAT = 1
Weights = nn.Module | Mapping[str, Tensor] | str | Path


class WeightFileError(TorchmemError):
    """A saved mask or delta cannot be used; the message names the file and the way out."""


class WeightEdit(Edit):
    """An edit of parameters: never in place, w_effective = effective(name, w), differentiable in w."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters it changes, sorted."""
        return tuple(sorted(self._shapes))

    @property
    def _shapes(self) -> Mapping[str, torch.Size]:
        return {}

    def effective(self, name: str, w: Tensor) -> Tensor:
        """The weight that computes in place of parameter `name`, whose value is `w`."""
        return w

    def frozen(self, name: str) -> Tensor | None:
        """Entries (bool) of parameter `name` that training under this edit must leave alone; None for none."""
        return None

    def check(self, weights: nn.Module | Mapping[str, Tensor]) -> None:
        """Raise ValueError where a parameter does not exist there or has another shape."""
        found = parameters_of(weights, aliases=True)
        for name, shape in self._shapes.items():
            if name not in found:
                near = difflib.get_close_matches(name, found, 3)
                hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(found)[:3])}, ..."
                raise ValueError(f"{self.describe()}: there is no parameter {name!r}; {hint}")
            if found[name].shape != shape:
                raise ValueError(
                    f"{self.describe()}: {name} has shape {tuple(shape)} here and {tuple(found[name].shape)} in the "
                    f"model; this edit was made for an agent of another size"
                )

    # On disk ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, atomically. Its header holds kind, format, base hash and content digest."""
        plain, tensors = self.parts()
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        header = {"format": FORMAT, "kind": type(self).__name__, "torchmem": __version__, "digest": self.digest}
        header["base"] = getattr(self, "base", "")
        card = {"torchmem": json.dumps(header | {"fields": plain}, allow_nan=False)}
        return atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=card))

    @classmethod
    def _read(cls, path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """(header, tensors by field and name). Raises WeightFileError."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("torchmem", "null"))
                tensors: dict[str, dict[str, Tensor]] = {}
                for key in file.keys():
                    field, _, name = key.partition("/")
                    tensors.setdefault(field, {})[name] = file.get_tensor(key)
        except FileNotFoundError as error:
            raise WeightFileError(f"{path} does not exist") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightFileError(f"{path} is not a readable safetensors file (truncated?): {error}") from error
        if not isinstance(header, dict) or header.get("kind") != cls.__name__:
            kind = header.get("kind") if isinstance(header, dict) else "file of another program"
            raise WeightFileError(f"{path} is a {kind}, not a {cls.__name__}")
        if header["format"] != FORMAT:
            raise WeightFileError(f"{path} has format {header['format']}, this torchmem reads {FORMAT}")
        return header, tensors

    def _as_saved(self, path: str | Path, header: Mapping[str, Any], weights: Weights | None, any_base: bool) -> None:
        """Raise where this, just read, is not what was saved, or does not belong to `weights`."""
        if self.digest != header["digest"]:
            raise WeightFileError(f"{path} was altered after it was written (its digest is wrong)")
        if weights is None:
            return
        found = parameters_of(weights)
        self.check(found)
        base = getattr(self, "base", "")
        if base and not any_base and base != weights_hash(found):
            raise WeightFileError(
                f"{path} was made for other weights (hash {base[:12]}, these have {weights_hash(found)[:12]}): pass "
                f"any_base=True to use it on them all the same"
            )


def parameters_of(weights: Weights, aliases: bool = False) -> dict[str, Tensor]:
    """Named weights: a module's or checkpoint's parameters (not its running statistics), or a state dict as it is.

    aliases: name a parameter that sits in two places twice. Raises CheckpointError for a path without an agent.
    """
    if isinstance(weights, (str, Path)):
        from torchmem.models.checkpoint import load

        weights = load(weights)  # type: ignore[assignment]
    if isinstance(weights, nn.Module):
        return {name: p.detach() for name, p in weights.named_parameters(remove_duplicate=not aliases)}
    return {name: value.detach() for name, value in weights.items()}  # type: ignore[union-attr]


def weights_hash(weights: Weights) -> str:
    """sha256 over the names and raw values of all parameters."""
    total = hashlib.sha256()
    for name, value in sorted(parameters_of(weights).items()):
        total.update(name.encode())
        total.update(tensor_bytes(value))
    return total.hexdigest()


def matching(names: Iterable[str], patterns: str | Iterable[str]) -> list[str]:
    """The names that match any shell pattern ("dynamics.*"). Raises ValueError for a pattern that matches none."""
    names = list(names)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            near = difflib.get_close_matches(pattern, names, 3) or sorted(names)[:3]
            raise ValueError(f"no parameter matches {pattern!r}; there are {', '.join(near)}, ...")
        chosen.update(hits)
    return [name for name in names if name in chosen]


def per_module(values: Mapping[str, float], combine: Callable[[Iterable[float]], float] = sum) -> dict[str, float]:
    """Numbers per parameter, combined over the parameters of each module: "a.b.weight" counts for "a.b"."""
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(name.rpartition(".")[0], []).append(value)
    return {name: combine(group) for name, group in groups.items()}
