"""Edits on a real agent: step numbers while acting, and a delta that turns one agent into another."""

from __future__ import annotations

import pytest
import torch

from tests.surgery.conftest import dreamer
from torchmem.models.checkpoint import save_agent
from torchmem.surgery.diff import update_diff
from torchmem.surgery.edits import Ablate, Patch
from torchmem.surgery.weights import WeightDelta, parameters_of


@pytest.mark.parametrize("kind", ["patch", "resample"])
def test_edits_that_depend_on_the_step_mean_the_same_while_acting(model, seq, kind: str):
    """They name no steps, and yet each step has its own value; while acting all views are one step long."""
    steps = seq["is_first"].shape[1]
    seq["is_first"][:] = False
    seq["is_first"][:, 0] = True
    size = model.sites["memory"].shape[0]
    values = torch.randn(50, size)
    edit = Ablate("memory", "resample", bank=values) if kind == "resample" else Patch("memory", values[None])
    with model.edited(edit), model.trace(seq, raw=False):
        whole = model.site("memory").save()
    with model.edited(edit), model.trace.play(steps, obs=seq, raw=False):
        played = model.site("memory").save()
    assert torch.equal(played, whole)
    assert len(whole[0].unique(dim=0)) > 1
    if kind == "patch":
        assert torch.equal(whole, values[None, :steps].expand_as(whole))


def test_under_a_delta_one_agent_is_the_other_bitwise(model, agent, seq, tmp_path):
    other = dreamer()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    paths = [save_agent(a, tmp_path / name) for a, name in ((agent, "before"), (other, "after"))]
    delta = WeightDelta.between(*paths)
    assert delta == WeightDelta.between(agent, other) and delta.base
    assert all(torch.equal(v, parameters_of(other)[n]) for n, v in delta.apply(parameters_of(agent)).items())
    with model.edited(delta):
        inside = model.unroll(seq)
    theirs = type(model)(other).unroll(seq)
    assert torch.equal(inside.states.deter, theirs.states.deter) and torch.equal(inside.value, theirs.value)
    assert not torch.equal(model.unroll(seq).value, theirs.value)
    diff = update_diff(*paths)
    assert diff.total_norm == pytest.approx(delta.norm()) and diff.provenance.checkpoint == str(paths[1])
