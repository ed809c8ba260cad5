"""Nested dictionaries of JSON values, arrays and tensors <-> a folder that is safe to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write

TENSOR, ARRAY = "@tensor", "@array"


class TornFile(TorchmemError):
    """A file of a snapshot is missing, truncated or altered."""


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """Write `<name>.json`, and `<name>.safetensors` for its arrays. Tuples come back as lists. Raises OSError."""
    arrays: dict[str, torch.Tensor] = {}
    text = json.dumps(_split(tree, "", arrays))
    file = folder / f"{name}.safetensors"
    try:
        atomic_write(file, lambda path: save_file(arrays, path, {"entries": str(len(arrays))}))
    except SafetensorError as error:  # what its Rust makes of a full disk
        raise OSError(f"could not write {file}: {error}") from error
    atomic_write(folder / f"{name}.json", text)


def read_tree(folder: Path, name: str) -> Any:
    """What `write_tree` wrote, tensors on the CPU. Raises TornFile naming the file."""
    file = folder / f"{name}.safetensors"
    try:
        with safe_open(file, framework="pt") as stored:
            arrays = {key: stored.get_tensor(key) for key in stored.keys()}
            entries = int(stored.metadata()["entries"])
        if entries != len(arrays):
            raise TornFile(f"{file} holds {len(arrays)} of {entries} arrays")
        file = folder / f"{name}.json"
        return _join(json.loads(file.read_text()), arrays)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TornFile(f"{file} is missing, truncated or altered ({type(error).__name__}: {error})") from error


def _split(node: Any, path: str, arrays: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, torch.Tensor):
        arrays[path] = node.detach().cpu().contiguous().clone()
        return {TENSOR: path}
    if isinstance(node, np.ndarray):
        arrays[path] = torch.from_numpy(np.array(node))  # a copy: safetensors refuses shared memory
        return {ARRAY: path}
    if isinstance(node, dict):
        return {str(key): _split(value, f"{path}/{key}", arrays) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_split(value, f"{path}/{i}", arrays) for i, value in enumerate(node)]
    return node.item() if isinstance(node, np.generic) else node


def _join(node: Any, arrays: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, dict):
        if set(node) == {TENSOR}:
            return arrays[node[TENSOR]]
        if set(node) == {ARRAY}:
            return arrays[node[ARRAY]].numpy()
        return {key: _join(value, arrays) for key, value in node.items()}
    if isinstance(node, list):
        return [_join(value, arrays) for value in node]
    return node
