"""`import torchmem` is cheap and its names are real."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import torchmem

PROBE = """
import json, sys, time
start = time.process_time()
import torchmem
took = time.process_time() - start
torchmem.EnvSpec
print(json.dumps([took, sorted({m.split(".")[0] for m in sys.modules})]))
"""


def test_import_is_fast_and_leaves_heavy_packages_alone():
    # processor time, the best of three: the wall clock of a busy machine says nothing about the package
    answers = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
        answers.append(json.loads(out))
    assert min(took for took, _ in answers) < 0.5
    heavy = {"torch", "numpy", "gymnasium", "lightning", "hydra", "nnsight", "matplotlib", "sklearn"}
    assert not heavy & set(answers[0][1])


@pytest.mark.parametrize("name", torchmem.__all__)
def test_public_names_resolve(name: str):
    assert getattr(torchmem, name) is not None
    assert name in dir(torchmem)


def test_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match="make_env"):
        _ = torchmem.make_environment
