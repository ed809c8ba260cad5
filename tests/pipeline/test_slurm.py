"""The job scripts: submitted to a planted sbatch that runs each job when those it waits for have ended well."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.pipeline import planted
from tests.pipeline.planted import chain, ledger, run, text
from torchmem.cli import main
from torchmem.pipeline.stage import PipelineError

CHAIN = "code: ignore\n" + planted.CHAIN  # the package may be edited while these processes run

# Keeps what each job would get, and runs it at once, as a cluster with one free node would.
SBATCH = """#!/bin/bash
set -euo pipefail
n=$(( $(ls {folder} | wc -l) + 1 ))
after=""
for word in "$@"; do case "$word" in --dependency=afterok:*) after=${{word#--dependency=afterok:}};; esac; done
for job in ${{after//:/ }}; do [ "$(cat {folder}/$job)" = 0 ] || {{ echo 9 > {folder}/$n; echo $n; exit; }}; done
code=0; "./${{@: -1}}" > /dev/null 2>&1 || code=$?
echo $code > {folder}/$n
echo "$n;cluster"
"""


def submit(tmp_path: Path, jobs: Path, **environment: str) -> list[str]:
    """Run submit.sh; returns the exit codes of the jobs in order (9: never run)."""
    programs, done = tmp_path / "bin", tmp_path / f"done{len(list(tmp_path.iterdir()))}"
    programs.mkdir(exist_ok=True)
    done.mkdir()
    (programs / "sbatch").write_text(SBATCH.format(folder=done))
    (programs / "sbatch").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    subprocess.run([jobs / "submit.sh"], check=True, env={**os.environ, "PATH": path, **environment}, timeout=120)
    return [file.read_text().strip() for file in sorted(done.iterdir())]


def test_jobs_run_in_order_into_the_same_cache(tmp_path, capsys):
    path, jobs = chain(tmp_path, text=CHAIN), tmp_path / "jobs of mine"
    assert main(["pipeline", str(path), "--slurm", str(jobs), "--seed", "one=7"]) == 0
    assert ledger(tmp_path) == [], "writing jobs runs nothing"
    assert submit(tmp_path, jobs) == ["0"] * 4
    assert ledger(tmp_path) == ["first", "second", "third", "beside"] and text(tmp_path, "third") == "a7bc"
    assert set(run(path, seeds={"one": 7}).values()) == {"cached"}


def test_what_needs_a_failed_job_does_not_run(tmp_path):
    broken = CHAIN.replace('second, {second}, "${{first}}"]', 'second, {second}, "/nowhere"]\n  # ${{first}}')
    path = chain(tmp_path, text=broken)
    main(["pipeline", str(path), "--slurm", str(tmp_path / "jobs")])
    assert submit(tmp_path, tmp_path / "jobs") == ["0", "1", "9", "0"]


def test_only_what_is_not_cached_is_submitted_and_force_holds_for_the_first_start_alone(tmp_path):
    path, jobs = chain(tmp_path, text=CHAIN), tmp_path / "jobs"
    run(path)
    main(["pipeline", str(path), "--slurm", str(jobs)])
    assert submit(tmp_path, jobs) == []
    ledger(tmp_path)
    main(["pipeline", str(path), "--slurm", str(jobs), "--force", "first", "--only", "first"])
    assert submit(tmp_path, jobs) == ["0"] and ledger(tmp_path) == ["first"]
    assert submit(tmp_path, jobs, SLURM_RESTART_COUNT="1") == ["0"], "put back into the queue"
    assert ledger(tmp_path) == []


def test_options_of_file_and_stage_stand_in_the_script(tmp_path):
    text = "slurm: {{mem: 8G, partition: cpu}}\n" + CHAIN.replace(
        '"${{first}}"]', '"${{first}}"]\n    slurm: {{partition: gpu, gres: "gpu:1", comment: "two words"}}'
    )
    main(["pipeline", str(chain(tmp_path, text=text)), "--slurm", str(tmp_path / "jobs")])
    lines = (tmp_path / "jobs" / "second.sh").read_text().splitlines()
    for option in ("mem=8G", "partition=gpu", "gres=gpu:1", "comment='two words'", "job-name=chain-second"):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --partition=cpu" in (tmp_path / "jobs" / "first.sh").read_text()
    assert "#SBATCH --requeue" in lines and any("USR1@" in line for line in lines), "training may go on in a second job"


def test_an_option_that_would_break_the_order_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="dependency is set by torchmem"):
        run(chain(tmp_path, text="slurm: {{dependency: x}}\n" + CHAIN))
