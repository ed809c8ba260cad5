"""What an artefact is, as a hash of its content, and the log of who made it: `provenance.jsonl`. A leaf.

    <folder>/provenance.jsonl        one line for each process that wrote the folder; lines are only ever added
    <file>.provenance.jsonl          the same for an artefact that is one file

The hash of a folder is that of its files' names and contents, without what tells when and where it was made rather than
what it is (`counted`): such things would differ each time, and everything made from the artefact would be made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torchmem.errors import TorchmemError
from torchmem.provenance import NOW, Provenance

RECORDS = "provenance.jsonl"
FORMAT = 1
# The only environment variables that are ever written down. None of them can hold a secret.
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MUJOCO_GL",
    "PYTHONHASHSEED", "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "THP_MEM_ALLOC_ENABLE",
    "TORCHDYNAMO_DISABLE",
)  # fmt: skip
CARDS = ("result.json", "recording.json")  # hold a provenance
WHEN = (*NOW, "checkpoint", "parents", "home")  # of a provenance: who, when and where; the rest says what it is
LOCKS = (".lock", "lock")
GOING_ON = re.compile(r"(shared|rank\d+)\.(json|safetensors)")  # of a snapshot: what only the run itself reads


class ArtefactError(TorchmemError):
    """An artefact or its record cannot be read; the message names the file and the way out."""


# Content -------------------------------------------------------------------------------------------------------------


def counted(path: Path) -> Iterator[Path]:
    """The files of an artefact that its hash is made of, in order. Raises ArtefactError where there is no artefact.

    Not counted: locks, unfinished files and the log itself; of a training run, its random id, tensorboard's copy of the
    metrics, the replay, and what a snapshot keeps for going on (optimiser, clocks) beside the agent.
    """
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise ArtefactError(f"{path} does not exist: there is no artefact there")
    names = sorted(os.listdir(path))
    run = "run.json" in names and "config.json" in names
    snapshot = (path / "agent" / "agent.json").is_file()
    for name in names:
        beside = name in LOCKS or name.endswith((".part", RECORDS)) or (snapshot and GOING_ON.fullmatch(name))
        if not beside and not (run and name in ("run.json", "tb", "replay")):
            yield from counted(path / name)


def file_hash(path: Path) -> str:
    """sha256 of a file; of a card (result.json, recording.json), of what it says besides who wrote it and when."""
    if path.name in CARDS:
        try:
            card = json.loads(path.read_bytes())
            origin = {k: v for k, v in card["provenance"].items() if k not in WHEN}
            content = json.dumps({**card, "provenance": origin}, sort_keys=True)
            return hashlib.sha256(content.encode()).hexdigest()
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # a file of that name by another program: as it is
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined(hashes: Mapping[str, str]) -> str:
    """One sha256 of many files: relative name -> hash. One file's own hash stands under the name ""."""
    if set(hashes) == {""}:
        return hashes[""]
    text = "".join(f"{hashes[name]} {name}\n" for name in sorted(hashes))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def file_hashes(path: str | Path) -> dict[str, str]:
    """Relative name -> sha256 of every file that counts; {"": sha256} where the artefact is one file."""
    path = Path(path)
    return {"" if file == path else file.relative_to(path).as_posix(): file_hash(file) for file in counted(path)}


def content_hash(path: str | Path) -> str:
    """sha256 of an artefact, a file or a folder: equal for equal content, wherever and whenever it was made."""
    return combined(file_hashes(path))


def by_entry(hashes: Mapping[str, str]) -> dict[str, str]:
    """The same hashes, with each folder directly inside the artefact as one."""
    groups: dict[str, dict[str, str]] = {}
    for name, digest in hashes.items():
        first, _, rest = name.partition("/")
        groups.setdefault(first, {})[rest] = digest
    return {name: combined(group) for name, group in groups.items()}


# The log -------------------------------------------------------------------------------------------------------------


def log_of(path: str | Path) -> Path:
    """Where the log of an artefact lies."""
    path = Path(path)
    return path / RECORDS if path.is_dir() else path.with_name(f"{path.name}.{RECORDS}")


def append_record(
    path: str | Path,
    provenance: Provenance,
    *,
    inputs: Mapping[str, str | None] | None = None,
    outputs: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Add one line to the log of the artefact `path`, under a lock and synced. Returns the record.

    inputs: path -> content hash of what it was made from; default, the provenance's parents (or checkpoint), with the
    hashes that their own logs tell (null where they have none). outputs: relative name -> sha256; default, of the files
    as they are now. The record's `parents` are the ids of the last records of its inputs. more: further JSON fields.
    """
    path = Path(path)
    if inputs is None:
        sources = provenance.parents or ((provenance.checkpoint,) if provenance.checkpoint else ())
        inputs = {str(Path(source).absolute()): (last_record(source) or {}).get("content") for source in sources}
    hashes = dict(outputs) if outputs is not None else file_hashes(path)
    parents = [r["id"] for name, digest in inputs.items() if (r := last_record(name, digest)) is not None]
    record = {
        "format": FORMAT, "artefact": str(path.absolute()), "content": combined(hashes), **provenance.to_json(),
        "argv": list(sys.orig_argv), "environment": {n: os.environ[n] for n in ENVIRONMENT if n in os.environ},
        "platform": platform.platform(), "inputs": dict(inputs), "outputs": by_entry(hashes), **more,
        "parents": parents,
    }  # fmt: skip
    record = json.loads(json.dumps({"id": _record_id(record), **record}))  # as it will be read: lists for tuples
    with open(log_of(path), "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"  # a writer died within its line: it stays what it is, a line nobody can read
        else:
            torn = False
        file.write(b"\n" * torn + json.dumps(record, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return record


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """All records of an artefact, oldest first; none where it has no log. A line torn by a dying writer is passed over.

    Raises ArtefactError where the log was written by a torchmem that is newer than this one.
    """
    file = log_of(path)
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("format") == FORMAT:
            records.append(record)
        elif isinstance(record, dict):
            number = record.get("format")
            raise ArtefactError(f"{file} has a record of format {number!r}: use the torchmem that wrote it")
    return records


def last_record(path: str | Path, content: str | None = None) -> dict[str, Any] | None:
    """The newest record of an artefact, or of the artefact it is a part of (the agent of a run).

    content: prefer the newest record of just this content hash, should the artefact have been made several times.
    """
    path = Path(path).absolute()
    if records := read_records(path):
        return next((r for r in reversed(records) if r["content"] == content), records[-1])
    for place in path.parents:
        entry = path.relative_to(place).parts[0]
        holding = [record for record in read_records(place) if entry in record["outputs"]]
        if holding:
            return next((r for r in reversed(holding) if r["outputs"][entry] == content), holding[-1])
    return None


def unaltered(record: Mapping[str, Any]) -> bool:
    """Whether a record still says what it said when it was written: its id is a hash of the rest."""
    rest = {name: value for name, value in record.items() if name != "id"}
    return record.get("id") == _record_id(rest)


def _record_id(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, allow_nan=False).encode()).hexdigest()[:32]


def carry_log(old: str | Path, new: str | Path) -> None:
    """Copy the log of an artefact to the one that takes its place."""
    try:
        with open(log_of(old), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
    except FileNotFoundError:
        return
    log_of(new).write_bytes(content)
