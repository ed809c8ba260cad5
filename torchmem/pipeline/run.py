"""Runs what a plan asks for. A stage counts as done only once its completion record is written, which happens last."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torchmem.artefact import append_record, read_records
from torchmem.pipeline import process
from torchmem.pipeline.cache import Entry, measured
from torchmem.pipeline.file import Pipeline
from torchmem.pipeline.key import reads
from torchmem.pipeline.manifest import note, prepare
from torchmem.pipeline.plan import Planner, Verdict, concerned, known, plan, refuse_missing, selected
from torchmem.pipeline.stage import SEEDS, PipelineError, Stage
from torchmem.provenance import Provenance

log = logging.getLogger("torchmem")
FAILED, SKIPPED = "failed", "skipped"


class Interrupted(PipelineError):
    """A signal stopped the pipeline; `code` is the exit code that says so."""

    def __init__(self, number: int, stage: str) -> None:
        super().__init__(f"stopped in stage {stage}; the same command goes on")
        self.code = 128 + number


class StageFailed(PipelineError):
    """A stage's command failed; the message ends with the end of its log."""

    code = 1


class Runner:
    """One run of a pipeline. `states`: stage -> cached, done, failed or skipped."""

    def __init__(
        self, pipeline: Pipeline, only: Collection[str] = (), force: Collection[str] = (), keep_going: bool = False
    ) -> None:
        self.pipeline, self.keep_going = pipeline, keep_going
        self.force = known(pipeline, force, "--force")
        self.chosen = selected(pipeline, only)
        plan(pipeline, only, force)  # whatever is wrong is said before anything runs
        prepare(pipeline)
        self.planner = Planner(pipeline, self.force)
        self.states: dict[str, str] = {}
        self.signals = process.Signals()

    def run(self) -> dict[str, str]:
        """Run what is not cached, in order. Raises StageFailed at the first failure unless keep_going, Interrupted."""
        with self.signals:
            for stage in concerned(self.pipeline, self.chosen):
                broken = [name for name in stage.needs if self.states.get(name) in (FAILED, SKIPPED)]
                if broken:
                    self.states[stage.name] = SKIPPED
                    log.info("%s: skipped, because it needs %s", stage.name, ", ".join(broken))
                    continue
                verdict = self.planner.judge(stage)
                if verdict.state == "cached":
                    self._cached(verdict)
                elif stage.name in self.chosen:
                    self._run(verdict)
                else:  # its output was there when the plan was made
                    refuse_missing(self.pipeline, verdict, self.chosen)
        return self.states

    def _cached(self, verdict: Verdict) -> None:
        stage, entry = verdict.stage, verdict.entry
        assert entry is not None
        self.states[stage.name] = "cached"
        if stage.name in self.chosen:
            log.info("%s: cached, %s", stage.name, verdict.why)
            self._note(stage, "done", verdict, entry, self.planner.ready[stage.name][1])

    def _run(self, verdict: Verdict) -> None:
        stage, entry = verdict.stage, verdict.entry
        assert entry is not None, "its needs are made, so its key is known"

        def wait(holder: str) -> None:
            log.info("%s: waiting for %s, which holds %s", stage.name, holder or "another process", entry.folder)

        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(entry.locked(alone=True, wait=wait))
            done = entry.done() if stage.name not in self.force else None
            if done is not None and entry.out.exists():  # another pipeline has made it in the meantime
                self.planner.made(stage, entry, done)
                self._cached(Verdict(stage, "cached", f"made {done['date']}", verdict.parts, entry))
                return
            held = [lock]
            for name in dict.fromkeys(name.partition("/")[0] for name in reads(stage)):
                if name in self.planner.ready:
                    other, known_as = self.planner.ready[name]
                    held.append(stack.enter_context(other.locked(alone=False, wait=wait)))
                    if (other.done() or {}).get("content") != known_as["content"]:
                        raise PipelineError(f"stage {stage.name}: {name} is being made anew elsewhere; start once more")
            self._attempt(verdict, entry, held)

    def _attempt(self, verdict: Verdict, entry: Entry, held: list[int]) -> None:
        stage = verdict.stage
        keep = stage.resume and stage.name not in self.force
        unfinished = keep and entry.out.exists() and any(entry.out.iterdir())
        entry.begin(keep=keep)
        words = stage.words(lambda name: self._value(name, entry.out))
        command = process.argv(words, ours=stage.ours)
        log.info("%s: %s (%s); log: %s", stage.name, "goes on" if unfinished else "runs", verdict.why, entry.log)
        start = entry.log.stat().st_size if entry.log.exists() else 0
        lines = {place: len(read_records(place)) for place in _places(entry.out)}
        entry.holder(held[0], f"process {os.getpid()} on {os.uname().nodename}, or the command it started,")
        code, took = process.run_command(command, entry.log, self.signals, held)
        fault = f"ended with code {code}" if code else None
        files = measured(entry.out) if fault is None else {}
        if fault is None and not files:
            fault = "has written nothing into ${out}"
        if fault is None:
            done = self._finish(verdict, entry, command, files, lines, took)
            self.planner.made(stage, entry, done)
            self.states[stage.name] = "done"
            self._note(stage, "done", verdict, entry, done)
            log.info("%s: done in %.1f s (%.1f s of CPU)", stage.name, took["seconds"], took["cpu_seconds"])
            if self.signals.number is not None:
                raise Interrupted(self.signals.number, stage.name)
            return
        stopped = self.signals.number is not None
        self.states[stage.name] = FAILED
        self._note(stage, "interrupted" if stopped else FAILED, verdict, entry, took)
        if self.signals.number is not None:
            raise Interrupted(self.signals.number, stage.name)
        end = process.tail(entry.log, start)
        text = f"stage {stage.name} {fault}; the end of its log:\n{end}\nall of it: {entry.log}"
        if not self.keep_going:
            raise StageFailed(text)
        log.error("%s", text)

    def _value(self, name: str, out: Path) -> str:
        group, _, seed = name.partition(".")
        return str(self.pipeline.seeds[seed]) if group == SEEDS else self.planner.place(name, out)

    def _finish(
        self, verdict: Verdict, entry: Entry, command: list[str], files: Mapping[str, Any], lines: Mapping[Path, int],
        took: Mapping[str, float],
    ) -> dict[str, Any]:  # fmt: skip
        """The stage's line in the provenance log of its output, then the completion record."""
        stage, parts = verdict.stage, verdict.parts
        own = [r for place in _places(entry.out) for r in read_records(place)[lines.get(place, 0) :]]
        record = append_record(
            entry.out,
            made_by(own, parts["seeds"], stage),
            inputs={self.planner.place(name, entry.out): digest for name, digest in parts["inputs"].items()},
            outputs={name: digest for name, (_, _, digest) in files.items()},
            argv=command,
            stage={
                "name": stage.name, "key": entry.key, "parts": dict(parts), "pipeline": str(self.pipeline.path),
                "pipeline_sha256": self.pipeline.digest, "log": str(entry.log), **took,
            },
        )  # fmt: skip
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return entry.finish(stage.name, parts, files, date=date, **took, record=record["id"])

    def _note(
        self, stage: Stage, state: str, verdict: Verdict, entry: Entry, facts: Mapping[str, Any]
    ) -> None:
        told = {key: facts[key] for key in ("content", "seconds", "cpu_seconds", "date", "record") if key in facts}
        whole = {"state": state, "key": entry.key, "parts": dict(verdict.parts), "output": str(entry.out), **told}
        note(self.pipeline, stage.name, whole, entry.out if state == "done" else None)


def _places(out: Path) -> list[Path]:
    """Where a command may have left records: its output folder, and the artefacts directly inside."""
    return [out, *(sorted(p for p in out.iterdir() if p.is_dir()) if out.is_dir() else [])]


def made_by(own: list[dict[str, Any]], seeds: Mapping[str, int], stage: Stage) -> Provenance:
    """What the stage's own process has told of itself (`own`, its records), or else what is known from outside.

    The stage's process knows the device, the weights and the caveats of its data; another program says nothing.
    """
    fields = Provenance.here().to_json()
    told = own[-1] if own else {}
    known_fields = {name: told[name] for name in fields if name in told}
    caveats = [c for record in own for c in record.get("caveats", ())]
    return Provenance.from_json({
        **fields, **known_fields, "parents": (), "caveats": tuple(dict.fromkeys(caveats)),
        "seeds": {**told.get("seeds", {}), **seeds}, "config": told.get("config") or {"options": dict(stage.options)},
    })  # fmt: skip
