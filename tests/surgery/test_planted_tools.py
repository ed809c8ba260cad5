"""The planted circuit, found by the probe and by the delta (patch sweep and mask: test_patch.py, test_mask.py)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.surgery.planted import MEMORY, accuracy, planted, trials
from torchmem.analysis.fit_probe import fit_probe
from torchmem.result import Provenance
from torchmem.surgery.diff import update_diff
from torchmem.surgery.model import Model
from torchmem.surgery.weights import WeightDelta, WeightMask


def recorded(shuffled: bool, n: int = 80):
    """Trials as a recording: the memory through the delay, the cue as covariate."""
    model, data = Model(planted(shuffled=shuffled)), trials(n, seed=4)
    _, cache = model.run_with_cache(data.batch, ["memory"])
    steps = data.is_first.shape[1]
    return SimpleNamespace(
        activations={"memory": cache["memory"].flatten(0, 1).numpy()},
        units={"cue": "0 or 1"},
        covariates={
            "cue": np.repeat((data.cue > 0).numpy().astype(int), steps),
            "obs.signal": data.obs["signal"].flatten(0, 1).numpy(),
        },
        episode=np.repeat(np.arange(n), steps),
        time=np.tile(np.arange(steps) / 4.0, n),
        provenance=Provenance.here(),
    )


def test_the_probe_reads_the_cue_and_points_at_the_memory_units():
    delay = np.tile(np.arange(16) >= 8, 80)  # the shuffled copy has forgotten by then
    found = fit_probe(recorded(False), "memory", "cue", where=delay, draws=5, resamples=50)
    assert found.score[0] == 1.0 and found.controls["exchanged"]["score"][0] < 0.7
    weight = np.abs(np.asarray(found.directions["memory"])).reshape(-1, 32).max(0)
    assert set(np.argsort(-weight)[: len(MEMORY)]) == set(MEMORY)
    null = fit_probe(recorded(True), "memory", "cue", where=delay, draws=5, resamples=50)
    assert null.score[0] < 0.65 and null.controls["exchanged"]["p"][0] > 0.05


def learning(seed: int, shuffled: bool):
    """Before and after an `update` that puts the circuit in, with small changes of all other weights.

    shuffled: the same of the shuffled copy, the large changes at random places.
    """
    after = {name: p.detach().clone() for name, p in planted(seed, shuffled).named_parameters()}
    known, generator = planted(seed).known, torch.Generator().manual_seed(seed)
    before = {name: p.clone() for name, p in after.items()}
    for name, mask in known.essential.items():
        order = torch.randperm(mask.numel(), generator=generator)
        before[name][mask.flatten()[order].view_as(mask) if shuffled else mask] = 0
        before[name] += 0.01 * torch.randn(mask.shape, generator=generator)
    return before, after, known


@pytest.mark.parametrize("seed", range(3))
def test_the_delta_holds_the_circuit_and_its_largest_entries_are_it(seed):
    before, after, known = learning(seed, shuffled=False)
    delta = WeightDelta.between(before, after)
    size = sum(int(mask.sum()) for mask in known.essential.values())
    values = {name: delta.value(name).abs() for name in known.essential}
    edge = torch.cat([v.flatten() for v in values.values()]).topk(size).values[-1]
    largest = {name: value >= edge for name, value in values.items()}
    hits = sum(int((largest[n] & mask).sum()) for n, mask in known.essential.items())
    junk = sum(int((largest[n] & ~mask).sum()) for n, mask in known.essential.items())
    assert hits / size >= 0.95 and junk / sum(m.numel() for m in largest.values()) <= 0.01
    data, agent = trials(32, seed), planted(seed)
    agent.load_state_dict(before)
    model = Model(agent)
    assert accuracy(model, data) < 0.8
    with model.edited(delta.restrict(WeightMask(largest))):
        assert accuracy(model, data) == 1.0, "these entries alone bring the skill"
    with model.edited(delta.restrict(WeightMask({n: ~m for n, m in largest.items()}))):
        assert accuracy(model, data) < 0.8, "and all the others do not"
    report = update_diff(before, after, masks={"circuit": WeightMask(known.essential)}, ranks=False)
    overlap = report.overlaps["circuit"]
    assert overlap["share"] > 0.9 > 10 * overlap["density"] and overlap["iou"] > 0.9 > 10 * overlap["expected_iou"]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_update_of_a_shuffled_copy_brings_nothing(seed):
    before, after, known = learning(seed, shuffled=True)
    delta, agent, data = WeightDelta.between(before, after), planted(seed), trials(32, seed)
    agent.load_state_dict(before)
    model = Model(agent)
    with model.edited(delta):
        assert accuracy(model, data) <= 0.5
    report = update_diff(before, after, masks={"circuit": WeightMask(known.essential)}, ranks=False)
    assert report.overlaps["circuit"]["iou"] < 0.2
