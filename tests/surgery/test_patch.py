"""patch_sweep finds the planted memory by all three methods, in both directions, and nothing in the shuffled copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.surgery.planted import GO_STEPS, LENGTH, MEMORY, MINUS, PLUS, UNITS, planted, trials
from torchmem.result import load_result
from torchmem.surgery.items import TraceError
from torchmem.surgery.model import Model
from torchmem.surgery.patch import logit_difference, patch_sweep

N = 8
METRIC = logit_difference(PLUS, MINUS, slice(-GO_STEPS, None))


def batches():
    one = torch.ones(N)
    return [trials(N, seed=3, cue=one).batch, trials(N, seed=3, cue=-one).batch, trials(N, seed=9, cue=-one).batch]


@pytest.fixture(scope="module")
def sweep():
    clean, corrupted, control = batches()
    steps = (1, 6, 11)
    return patch_sweep(Model(planted()), clean, corrupted, METRIC, steps=steps, control=control, points=24)


def test_the_memory_carries_the_whole_effect_in_both_directions(sweep):
    for direction in ("denoise", "noise"):
        effect = sweep.effects[f"{direction}/exact/memory"]
        assert effect.shape == (3,) and np.allclose(effect, 1, atol=0.02), effect
    assert sweep.clean > 1 and sweep.corrupted < -1
    # values of a run with the same cue but other noise change (almost) nothing
    assert np.abs(sweep.control["denoise/exact/memory"]).max() < 0.05


def test_single_units_are_named(sweep):
    share = np.abs(sweep.by_unit["denoise/integrated/memory"])
    assert share.shape == (3, UNITS)
    for t in range(3):
        assert set(np.argsort(-share[t])[: len(MEMORY)]) == set(MEMORY)
        assert np.delete(share[t], MEMORY).max() < 0.01


def test_groups_of_units_are_patched_apart():
    clean, corrupted, _ = batches()
    junk = [u for u in range(UNITS) if u not in MEMORY]
    found = patch_sweep(
        Model(planted()), clean, corrupted, METRIC, steps=(5,), units=[MEMORY, junk], methods=("exact",), rows=N
    )
    effect = found.effects["denoise/exact/memory"]
    assert effect.shape == (1, 2) and effect[0, 0] == pytest.approx(1, abs=0.02) and abs(effect[0, 1]) < 0.01


def test_gradients_miss_latched_units_and_the_numbers_say_so(sweep):
    """Latched tanh units have no slope (spec circuits 3.5). The longer they latch, the steeper the jump between their
    two states, until integrated gradients step over it too. Exact patching beside them shows it."""
    plain, whole = sweep.effects["denoise/attribution/memory"], sweep.effects["denoise/integrated/memory"]
    assert whole[-1] == pytest.approx(1, abs=0.1) and abs(plain[-1] - 1) > 0.5
    assert whole[0] < 0.1, "10 steps of latching between the patch and the answer"
    clean, corrupted, _ = batches()
    alone = [[u] for u in (*MEMORY, 0, 1, 2)]
    found = patch_sweep(Model(planted()), clean, corrupted, METRIC, steps=(5,), units=alone, points=24)
    assert found.agreement["denoise/integrated"] > 0.6 and "rank agreement" in found.summary()


def test_exact_patching_does_not_depend_on_how_many_cells_share_a_pass(sweep):
    clean, corrupted, _ = batches()
    alone = patch_sweep(Model(planted()), clean, corrupted, METRIC, steps=(1, 6, 11), methods=("exact",), rows=1)
    assert np.allclose(alone.effects["noise/exact/memory"], sweep.effects["noise/exact/memory"], atol=1e-6)


def test_a_shuffled_copy_has_nothing_to_patch():
    clean, corrupted, _ = batches()
    with pytest.raises(TraceError, match="nothing to patch back"):
        patch_sweep(Model(planted(shuffled=True)), clean, corrupted, METRIC)


def test_pairs_must_fit_and_the_result_survives_the_disk(sweep, tmp_path):
    clean, corrupted, _ = batches()
    short = {key: value[:, : LENGTH - 2] for key, value in corrupted.items()}
    with pytest.raises(TraceError, match="pairs"):
        patch_sweep(Model(planted()), clean, short, METRIC)
    with pytest.raises(TraceError, match="one number per row"):
        patch_sweep(Model(planted()), clean, corrupted, lambda out: out.value)
    assert load_result(sweep.save(tmp_path / "sweep")) == sweep
