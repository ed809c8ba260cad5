"""The key of a stage: a hash of all that decides what it makes; and in words, what changed between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmem import __version__
from torchmem.pipeline.stage import OUT, SEEDS, Stage
from torchmem.provenance import git_state

FORMAT = 1


def parts_of(stage: Stage, inputs: Mapping[str, str], seeds: Mapping[str, int], code: str) -> dict[str, Any]:
    """What the key of a stage is the hash of. inputs: each `${name}` that it reads -> content hash.

    Paths are no part of it: the command still holds its names, so a cache may move. A seed counts where it is named.
    """
    used = [name.partition(".")[2] for name in stage.names() if name.partition(".")[0] == SEEDS]
    return {
        "format": FORMAT,
        "command": list(stage.command),
        "options": json.loads(json.dumps(stage.options)),
        "inputs": dict(inputs),
        "seeds": {name: seeds[name] for name in used},
        "code": code_state(code),
    }


def key_of(parts: Mapping[str, Any]) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reads(stage: Stage) -> list[str]:
    """The `${names}` whose content counts: stages, inputs and paths within them."""
    return [name for name in stage.names() if name.partition("/")[0] != OUT and name.partition(".")[0] != SEEDS]


def code_state(code: str) -> dict[str, Any]:
    """Of torchmem, as the file asks: `source` its version and files, `git` version, commit and changes, `ignore`."""
    if code == "ignore":
        return {"ignored": True}
    if code == "git":
        commit, diff = git_state()
        return {"torchmem": __version__, "commit": commit, "changes": diff}
    return {"torchmem": __version__, "source": source_hash()}


def source_hash() -> str:
    """sha256 over the files of the package: the same code has the same, in a checkout or installed."""
    folder = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")]):
        total.update(f"{path.relative_to(folder).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two keys' parts, one line each."""
    lines = []
    if old.get("command") != new["command"]:
        lines.append(f"command: {' '.join(old.get('command', []))} -> {' '.join(new['command'])}")
    for group, word in (("options", "option"), ("seeds", "seed"), ("inputs", "input")):
        before, after = old.get(group, {}), new[group]
        for name in [*after, *(n for n in before if n not in after)]:
            if name in before and name in after and before[name] == after[name]:
                continue
            was, now = (_shown(side[name], group) if name in side else "not there" for side in (before, after))
            lines.append(f"{word} {name}: {was} -> {now}")
    if old.get("code") != new["code"]:
        was, now = old.get("code", {}), new["code"]
        lines.append(f"code: {short_code(was)} -> {short_code(now)}")
    if old.get("format") != new["format"] and not lines:
        lines.append("the way keys are made")
    return lines


def _shown(value: Any, group: str) -> str:
    return str(value)[:8] if group == "inputs" else json.dumps(value)


def short_code(state: Mapping[str, Any]) -> str:
    """In a few words, for a table."""
    if state.get("ignored"):
        return "ignored"
    what = state.get("source") or state.get("commit") or ""
    changed = f" with changes {state['changes'][:8]}" if state.get("changes") else ""
    return f"torchmem {state.get('torchmem')} {what[:8]}".rstrip() + changed
