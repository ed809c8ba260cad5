"""What would run, what is there already, and why. Nothing here starts or changes anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from torchmem.artefact import content_hash
from torchmem.pipeline.cache import Entry
from torchmem.pipeline.file import Pipeline, nearest
from torchmem.pipeline.key import difference, key_of, parts_of, reads
from torchmem.pipeline.stage import OUT, PipelineError, Stage

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is to be done about a stage. `waits`: that depends on stages that run first."""

    stage: Stage
    state: Literal["cached", "run", "waits"]
    why: str
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    entry: Entry | None = None  # None where it waits


class Planner:
    """Judges the stages of a pipeline in their order. Stages that were judged `cached` or `made` feed later ones."""

    def __init__(self, pipeline: Pipeline, force: Collection[str] = ()) -> None:
        self.pipeline, self.force = pipeline, set(force)
        self.ready: dict[str, tuple[Entry, Mapping[str, Any]]] = {}  # stage -> where its output is, its record
        self.before = read_manifest(pipeline.folder).get("stages", {})
        self.inputs: dict[str, str] = {}  # content of what no stage makes, hashed once

    def judge(self, stage: Stage) -> Verdict:
        """Of a stage whose needs were judged before. Raises PipelineError for an output that was altered."""
        missing = [name for name in stage.needs if name not in self.ready]
        if missing:
            way = "" if stage.name in self.force else "; cached if what comes out is what was read before"
            return Verdict(stage, "waits", f"after {', '.join(missing)}{way}")
        hashes = {name: self._content(name) for name in reads(stage)}
        parts = parts_of(stage, hashes, self.pipeline.seeds, self.pipeline.code)
        entry = Entry(self.pipeline.cache, key_of(parts))
        done = entry.done()
        if stage.name in self.force:
            return Verdict(stage, "run", "forced", parts, entry)
        if done is None or not entry.out.exists():
            return Verdict(stage, "run", self._why(stage, parts, gone=done is not None), parts, entry)
        if fault := entry.fault(done):
            raise PipelineError(
                f"stage {stage.name}: {fault} after the stage had ended. --force {stage.name} makes all of it anew"
            )
        self.made(stage, entry, done)
        return Verdict(stage, "cached", f"made {done['date']}", parts, entry)

    def made(self, stage: Stage, entry: Entry, done: Mapping[str, Any]) -> None:
        """The output of a stage is there: later ones may read it."""
        self.ready[stage.name] = entry, done

    def place(self, name: str, out: Path) -> str:
        """The path that a `${name}` (not a seed) stands for, in a stage that writes to `out`."""
        first, _, rest = name.partition("/")
        if first == OUT:
            base = out
        else:
            base = self.ready[first][0].out if first in self.ready else self.pipeline.inputs[first]
        return str(base / rest) if rest else str(base)

    def _content(self, name: str) -> str:
        first, _, rest = name.partition("/")
        if first in self.ready:
            entry, done = self.ready[first]
            return entry.content(done, rest)
        if name not in self.inputs:
            self.inputs[name] = content_hash(self.pipeline.inputs[first] / rest)
        return self.inputs[name]

    def _why(self, stage: Stage, parts: Mapping[str, Any], gone: bool) -> str:
        if gone:
            return "its output was deleted"
        before = self.before.get(stage.name)
        if before is None:
            return "not made yet"
        changes = difference(before["parts"], parts)
        if changes:
            return "; ".join(changes)
        return f"{before['state']} the last time" if before["state"] != "done" else "no longer in the cache"


def plan(pipeline: Pipeline, only: Collection[str] = (), force: Collection[str] = ()) -> list[Verdict]:
    """A verdict on every stage (on those of `only`), in order. Raises PipelineError, also where `only` lacks a need."""
    planner = Planner(pipeline, known(pipeline, force, "--force"))
    chosen = selected(pipeline, only)
    verdicts = []
    for stage in concerned(pipeline, chosen):
        verdict = planner.judge(stage)
        if stage.name in chosen:
            verdicts.append(verdict)
        elif verdict.state != "cached":
            refuse_missing(pipeline, verdict, chosen)
    return verdicts


def selected(pipeline: Pipeline, only: Collection[str]) -> set[str]:
    """The stages of `only`, or all."""
    return known(pipeline, only, "--only") or set(pipeline.stages)


def concerned(pipeline: Pipeline, chosen: Collection[str]) -> list[Stage]:
    """The chosen stages and all that they need, in order."""
    names = set(chosen)
    for stage in reversed(list(pipeline.stages.values())):
        names |= set(stage.needs) if stage.name in names else set()
    return [stage for stage in pipeline.stages.values() if stage.name in names]


def refuse_missing(pipeline: Pipeline, verdict: Verdict, chosen: Collection[str]) -> None:
    """Raise PipelineError where a chosen stage needs one that is neither chosen nor cached."""
    name = verdict.stage.name
    for other in chosen:
        if name in pipeline.stages[other].needs:
            raise PipelineError(
                f"--only {other}: it needs {name}, which would have to run ({verdict.why}). Add --only {name}, or "
                f"leave --only out"
            )


def known(pipeline: Pipeline, names: Collection[str], flag: str) -> set[str]:
    """`names`, all of which are stages. Raises PipelineError naming the first that is none."""
    for name in names:
        if name not in pipeline.stages:
            raise PipelineError(f"{flag} {name}: there is no such stage{nearest(name, pipeline.stages)}")
    return set(names)


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a pipeline's folder; empty where there is none. Raises PipelineError."""
    file = folder / MANIFEST
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise PipelineError(f"{file} cannot be read ({error}): delete it, the cache is whole without it") from error


def table(verdicts: list[Verdict]) -> str:
    """One line per stage: state, name, reason."""
    width = max(len(v.stage.name) for v in verdicts) if verdicts else 0
    lines = []
    for v in verdicts:
        first, *rest = v.why.split("; ")
        lines += [f"{v.state:<6}  {v.stage.name:<{width}}  {first}", *(f"{'':<{width + 10}}{one}" for one in rest)]
    return "\n".join(lines)
