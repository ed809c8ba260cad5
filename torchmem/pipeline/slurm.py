"""A pipeline as jobs of SLURM: one script per stage, and one that submits them so that each waits for what it needs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from torchmem.files import atomic_write
from torchmem.pipeline.file import Pipeline
from torchmem.pipeline.plan import Verdict
from torchmem.pipeline.stage import Stage

WARNING_S = 120  # seconds before the time limit: training saves a snapshot and puts itself back into the queue


def write_jobs(pipeline: Pipeline, verdicts: list[Verdict], folder: str | Path, force: set[str]) -> Path:
    """Write <stage>.sh of every stage that is not cached, and submit.sh. Returns the latter.

    A job runs `torchmem pipeline FILE --only STAGE`, so it uses the same cache, locks and manifest as a run by hand.
    """
    folder = Path(folder).absolute()
    todo = [verdict.stage for verdict in verdicts if verdict.state != "cached"]
    for stage in todo:
        _write(folder / f"{stage.name}.sh", _job(pipeline, stage, folder, stage.name in force))
    return _write(folder / "submit.sh", _submit(pipeline, todo))


def _write(path: Path, lines: list[str]) -> Path:
    atomic_write(path, "\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def _job(pipeline: Pipeline, stage: Stage, folder: Path, force: bool) -> list[str]:
    seeds = [word for name, seed in pipeline.seeds.items() for word in ("--seed", f"{name}={seed}")]
    command = [
        sys.executable, "-m", "torchmem.cli", "pipeline", str(pipeline.path), "--folder", str(pipeline.folder),
        "--cache", str(pipeline.cache), *seeds, "--only", stage.name,
    ]  # fmt: skip
    # a job that was put back into the queue goes on with what it has begun
    anew = f' $( (( ${{SLURM_RESTART_COUNT:-0}} )) || echo --force {stage.name} )' if force else ""
    options = {
        "job-name": f"{pipeline.path.stem}-{stage.name}", "chdir": str(Path.cwd()),
        "output": str(folder / f"{stage.name}-%j.log"), "signal": f"B:USR1@{WARNING_S}", **stage.slurm,
    }  # fmt: skip
    return [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={_quoted(value)}" for name, value in options.items()),
        "#SBATCH --requeue",
        "# exec: the signal before the time limit reaches torchmem itself, which passes it on to the stage",
        f"exec {shlex.join(command)}{anew}",
    ]


def _quoted(value: str) -> str:
    """sbatch reads quotes as a shell does, but only where it needs them."""
    return shlex.quote(value) if any(c in value for c in " \"'\\#") else value


def _submit(pipeline: Pipeline, todo: list[Stage]) -> list[str]:
    names = [stage.name for stage in todo]
    lines = [
        "#!/bin/bash",
        f"# Submits the stages of {pipeline.path} that were not cached, each after those it reads from.",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
    ]
    for stage in todo:
        after = [f"${{{_variable(name)}}}" for name in stage.needs if name in names]
        wait = f' --dependency="afterok:{":".join(after)}" --kill-on-invalid-dep=yes' if after else ""
        variable = _variable(stage.name)
        lines += [
            f"{variable}=$(sbatch --parsable{wait} {stage.name}.sh)",
            f"{variable}=${{{variable}%%;*}}  # job;cluster",
            f'echo "{stage.name}: job ${{{variable}}}"',
        ]
    return [*lines, *([] if todo else ['echo "every stage is cached: nothing to submit"'])]


def _variable(name: str) -> str:
    return "job_" + name.replace("-", "_")
