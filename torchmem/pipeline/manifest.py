"""The folder of a pipeline: manifest.json says what each stage last made, and a link leads to each output."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmem import __version__
from torchmem.files import atomic_write
from torchmem.pipeline.file import Pipeline
from torchmem.pipeline.plan import MANIFEST, read_manifest
from torchmem.pipeline.stage import PipelineError


def prepare(pipeline: Pipeline) -> None:
    """Make the folder. Raises PipelineError where it holds something that a link would have to replace."""
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    for name in pipeline.stages:
        place = pipeline.folder / name
        if place.exists() and not place.is_symlink():
            raise PipelineError(
                f"{place} is there already and is no link to a stage: choose another folder: in {pipeline.path}"
            )


def note(pipeline: Pipeline, stage: str, facts: Mapping[str, Any], out: Path | None = None) -> None:
    """Put the facts of one stage into manifest.json, under a lock: jobs of one pipeline run side by side.

    out: its finished output; the link is set to it.
    """
    with open(pipeline.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = read_manifest(pipeline.folder)
        content = {
            "format": 1, "torchmem": __version__, "pipeline": str(pipeline.path),
            "pipeline_sha256": pipeline.digest, "cache": str(pipeline.cache), "code": pipeline.code,
            "seeds": dict(pipeline.seeds), "stages": {**found.get("stages", {}), stage: dict(facts)},
        }  # fmt: skip
        atomic_write(pipeline.folder / MANIFEST, json.dumps(content, indent=1) + "\n")
        if out is not None:
            link(pipeline.folder / stage, out)


def link(place: Path, target: Path) -> None:
    """Make `place` a link to `target`, at once; relative, so that the folder may move with its cache."""
    new = place.with_name(f".{place.name}.{os.getpid()}.link")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(target, place.parent))
    os.replace(new, place)
