"""Edits as a folder: edits.json says what each is, edits.safetensors holds its tensors. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from torchmem import __version__
from torchmem.errors import TorchmemError
from torchmem.files import atomic_write, sync_folder
from torchmem.surgery.edit import Edit, Edits, Tensors
from torchmem.surgery.edits import Ablate, Clamp, Patch, Project, Steer
from torchmem.surgery.movement import Collapse, Swap
from torchmem.surgery.weight_delta import WeightDelta
from torchmem.surgery.weight_mask import WeightMask

FORMAT = 1
CARD, TENSORS = "edits.json", "edits.safetensors"
KINDS: dict[str, type[Edit]] = {
    kind.__name__: kind for kind in (Patch, Ablate, Clamp, Steer, Project, Swap, Collapse, WeightMask, WeightDelta)
}


class EditFileError(TorchmemError):
    """Saved edits cannot be used; the message names the file and the way out."""


def save_edits(path: str | Path, edits: Edit | Iterable[Edit]) -> Path:
    """Write edits as the folder `path`: complete or not at all. Returns the folder.

    Raises FileExistsError where `path` holds something, EditFileError for an edit that is not one of KINDS.
    """
    path, edits = Path(path), Edits.of(edits)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} already exists: edits are never overwritten, choose another folder")
    entries, tensors = [], {}
    for place, edit in enumerate(edits):
        kind = type(edit).__name__
        if KINDS.get(kind) is not type(edit):
            raise EditFileError(f"{kind} cannot be saved: only {', '.join(KINDS)} can")
        plain, own = edit.parts()
        base = {"base": edit.base} if isinstance(edit, (WeightMask, WeightDelta)) else {}  # not part of the digest
        entries.append({"kind": kind, "digest": edit.digest, "fields": plain | base, "tensors": sorted(own)})
        tensors |= {f"{place}/{name}": value.detach().cpu().contiguous() for name, value in own.items()}
    content = save(tensors)
    card = {
        "format": FORMAT,
        "torchmem": __version__,
        "description": edits.describe(),
        "edits": entries,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
    }
    card["card_sha256"] = _card_hash(card)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        atomic_write(part / TENSORS, content)
        atomic_write(part / CARD, json.dumps(card, indent=1, allow_nan=False) + "\n")
        os.rename(part, path)  # onto nothing, or onto an empty folder
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(path.parent)
    return path


def load_edits(path: str | Path) -> Edits:
    """The edits that `save_edits` wrote, equal to the saved ones, on the CPU.

    Raises EditFileError where a file is missing, altered, truncated or of another version.
    """
    file = Path(path) / CARD
    card = _read_card(file)
    store = file.with_name(TENSORS)
    try:
        content = store.read_bytes()
    except FileNotFoundError as error:
        raise EditFileError(f"{store} is missing: the edits are incomplete, save them again") from error
    if hashlib.sha256(content).hexdigest() != card["tensors_sha256"]:
        raise EditFileError(f"{store} is truncated or altered (its hash is not that of {CARD}): save the edits again")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise EditFileError(f"{store} is not a readable safetensors file: {error}") from error
    return Edits(_edit(place, entry, tensors, file) for place, entry in enumerate(card["edits"]))


def _read_card(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise EditFileError(f"{file} is missing: {file.parent} holds no saved edits") from error
    except ValueError as error:
        raise EditFileError(f"{file} is not readable JSON (truncated?): {error}; save the edits again") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise EditFileError(
            f"{file} has format {found!r}; torchmem {__version__} reads format {FORMAT}: use the version that wrote it"
        )
    if card.get("card_sha256") != _card_hash(card):
        raise EditFileError(f"{file} was altered after it was written (its hash is wrong): save the edits again")
    return card


def _card_hash(card: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in card.items() if key != "card_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _edit(place: int, entry: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> Edit:
    kind = KINDS.get(entry["kind"])
    if kind is None:
        raise EditFileError(f"{file} holds a {entry['kind']!r}; this torchmem knows {', '.join(KINDS)}")
    fields: dict[str, Any] = {name: _plain(value) for name, value in entry["fields"].items()}
    groups: dict[str, dict[str, Tensor]] = {}
    for name in entry["tensors"]:
        field, slash, inner = name.partition("/")
        if slash:
            groups.setdefault(field, {})[inner] = tensors[f"{place}/{name}"]
        else:
            fields[field] = tensors[f"{place}/{name}"]
    fields |= {field: Tensors(group) for field, group in groups.items()}
    if kind is WeightMask or kind is WeightDelta:  # a mapping without entries leaves no trace among the tensors
        fields.setdefault("masks" if kind is WeightMask else "deltas", {})
    try:
        edit = kind(**fields)
    except (TypeError, ValueError) as error:
        raise EditFileError(f"{file}: edit {place} does not fit this torchmem: {error}") from error
    if edit.digest != entry["digest"]:
        raise EditFileError(f"{file}: edit {place}, {edit.describe()}, is not the one that was saved")
    return edit


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return slice(*value["slice"])
    return tuple(value) if isinstance(value, list) else value
