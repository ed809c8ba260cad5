"""`torchmem provenance`: what an artefact was made from, and that from what, back to the training run, as a tree."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmem.artefact import CARDS, RECORDS, ArtefactError, content_hash, last_record, read_records, unaltered
from torchmem.pipeline.key import short_code


def chain(path: str | Path, *, check: bool = False) -> dict[str, Any]:
    """{"path", "content", "record", "notes", "altered", "inputs": [the same of each]}: JSON values.

    check: read all files again and say which artefacts are no longer what their record describes. Raises ArtefactError
    where `path` does not exist or nothing is known of it.
    """
    path = Path(path)
    if not path.exists():
        raise ArtefactError(f"{path} does not exist")
    found = _node(path.resolve(), None, check, ())
    if found["record"] is None:
        raise ArtefactError(f"nothing is known of {path}: neither it nor a folder around it has a {RECORDS}")
    return found


def _node(path: Path, content: str | None, check: bool, above: tuple[Path, ...]) -> dict[str, Any]:
    """content: the hash that was read; of the artefact that the chain starts from, the one recorded last."""
    record = last_record(path, content) or _card(path)
    recorded = None if record is None else _content_in(record, path)
    notes, faults = [] if path.exists() else ["is gone"], []
    if record is None:
        notes.append("not made by torchmem")
    elif "id" in record and not unaltered(record):
        faults.append("THIS RECORD WAS ALTERED after it was written")
    if None not in (content, recorded) and content != recorded:
        faults.append(f"MADE ANEW: {content} was read, the record is of {recorded}")
    content = content or recorded
    record = _with_stage(record, path)
    if check and path.exists() and content is not None and content_hash(path) != content:
        faults.append("CHANGED: its files are not those of this record")
    inputs = {} if record is None else record.get("inputs") or {}
    deeper = [_node(Path(p), digest, check, (*above, path)) for p, digest in inputs.items() if Path(p) not in above]
    return {
        "path": str(path), "content": content, "record": record, "notes": [*notes, *faults], "altered": bool(faults),
        "inputs": deeper,
    }  # fmt: skip


def _with_stage(record: dict[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """A result that a stage put into its folder: the stage knows all that was read, the result only its recording."""
    if record is None or "stage" in record:
        return record
    for whole in reversed(read_records(path.parent)):
        if "stage" in whole and path.name in whole["outputs"]:
            return {**record, "stage": whole["stage"], "inputs": {**whole["inputs"], **(record.get("inputs") or {})}}
    return record


def _content_in(record: Mapping[str, Any], path: Path) -> str | None:
    """The content hash that a record gives for an artefact or for an entry of it."""
    home = Path(record["artefact"])
    for base in (home, home.resolve()):
        if path == base:
            return record.get("content")
        if path.parent == base:
            return record.get("outputs", {}).get(path.name)
    return None


def _card(path: Path) -> dict[str, Any] | None:
    """What an artefact without a log says of itself: a recording of `record`, an agent of a run that was killed."""
    for name in CARDS:
        try:
            told = json.loads((path / name).read_text())["provenance"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        sources = told.get("parents") or ([told["checkpoint"]] if told.get("checkpoint") else [])
        return {**told, "artefact": str(path), "inputs": dict.fromkeys(sources)}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((path / "agent.json").read_text())
        return {"torchmem": told["torchmem"], "weights": told["weights_sha256"], "artefact": str(path)}
    return None


def tree(node: Mapping[str, Any]) -> str:
    """The chain as text: the artefact, then what it was made from, each one level deeper."""
    return "\n".join(_lines(node, "", "", set()))


def _lines(node: Mapping[str, Any], first: str, rest: str, shown_before: set[tuple[str, str]]) -> list[str]:
    record, content = node["record"], node["content"]
    path = Path(node["path"])
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    lines = [f"{first}{shown}{f'  [{content[:8]}]' if content else ''}"]
    if (node["path"], content) in shown_before:
        return [f"{lines[0]}  as above"]
    shown_before.add((node["path"], content))
    about = list(node["notes"])
    if record is not None:
        about += _about(record)
    bar = f"{rest}{'│ ' if node['inputs'] else '  '}"
    lines += [f"{bar}{line}" for line in about]
    for i, child in enumerate(node["inputs"]):
        last = i == len(node["inputs"]) - 1
        lines += _lines(child, f"{rest}{'└─' if last else '├─'} ", f"{rest}{'   ' if last else '│  '}", shown_before)
    return lines


def _about(record: Mapping[str, Any]) -> list[str]:
    stage = record.get("stage") or {}
    commit, diff = record.get("commit"), record.get("diff")
    ignored = (stage.get("parts") or {}).get("code", {}).get("ignored")
    by = [
        f"stage {stage['name']}" if stage else "",
        record.get("date", ""),
        short_code({"torchmem": record.get("torchmem"), "commit": commit, "changes": diff}),
        "code ignored by the cache" if ignored else "",
        record.get("device", ""),
        f"torch {record['packages']['torch']}" if (record.get("packages") or {}).get("torch") else "",
        " ".join(f"seed {name}={seed}" for name, seed in (record.get("seeds") or {}).items()),
    ]
    lines = [", ".join(one for one in by if one)]
    command = shlex.join(record["argv"]) if record.get("argv") else record.get("command")
    lines.append(f"$ {command}" if command else "no log: what its own card says")
    if record.get("weights"):
        lines.append(f"weights {record['weights'][:16]}")
    lines += [f"edit: {json.dumps(edit)[:150]}" for edit in record.get("edits") or ()]
    return [*lines, *(f"CAVEAT: {one}" for one in record.get("caveats") or ())]
