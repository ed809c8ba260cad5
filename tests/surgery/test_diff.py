"""update_diff finds a planted update and says what chance would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from torchmem.result import load_result
from torchmem.surgery.diff import MASK_COLUMNS, update_diff
from torchmem.surgery.weights import WeightDelta, WeightMask


def net() -> nn.Module:
    return nn.ModuleDict({"cell": nn.Linear(40, 30), "head": nn.Linear(30, 20)})


def planted() -> tuple[nn.Module, nn.Module, WeightMask]:
    """A rank-one change of cell.weight on a mask, and dust on head.weight."""
    a, b = net(), net()
    b.load_state_dict(a.state_dict())
    rows = torch.arange(30) < 4
    with torch.no_grad():
        b["cell"].weight += torch.outer(rows * torch.randn(30), torch.randn(40))  # type: ignore[operator, index]
        b["head"].weight += 1e-3 * torch.randn(20, 30)  # type: ignore[operator, index]
    return a, b, WeightMask({"cell.weight": rows[:, None].expand(30, 40).clone()})


def test_a_planted_update_is_found():
    a, b, mask = planted()
    diff = update_diff(a, b, {"circuit": mask, "rest": ~mask})
    cell, head = (diff.parameters.index(name) for name in ("cell.weight", "head.weight"))
    assert diff.share[cell] > 0.999 and diff.share.sum() == pytest.approx(1.0)
    assert diff.effective_rank[cell] == pytest.approx(1.0, abs=0.01) == diff.stable_rank[cell]
    assert diff.noise_rank[cell] > 20 and diff.effective_rank[head] > 15
    assert np.isnan(diff.effective_rank[diff.parameters.index("cell.bias")])
    assert dict(zip(diff.modules, diff.module_share))["cell"] == pytest.approx(diff.share[cell])
    assert diff.total_norm == pytest.approx(WeightDelta.between(a, b).norm())
    weight = a["cell"].weight.detach()  # type: ignore[index]
    assert diff.relative[cell] == pytest.approx(diff.norm[cell] / float(weight.double().norm()))
    inside, outside = diff.overlaps["circuit"], diff.overlaps["rest"]
    assert inside.keys() == MASK_COLUMNS.keys()
    assert inside["share"] == pytest.approx(1.0) and outside["share"] == pytest.approx(0.0)
    assert inside["iou"] == pytest.approx(1.0) and inside["expected_iou"] < 0.1
    assert inside["density"] == pytest.approx(4 / 30) == inside["share_by_tensor"]
    assert "circuit: holds 100.0%" in diff.summary() and "chance 13.3%" in diff.summary()


def test_an_update_without_structure_overlaps_as_chance_says():
    a, _, _ = planted()
    delta = WeightDelta({"cell.weight": torch.randn(30, 40), "head.weight": torch.randn(20, 30) / 3})
    mask = WeightMask({"cell.weight": torch.rand(30, 40) < 0.2, "head.weight": torch.rand(20, 30) < 0.1})
    diff = update_diff(a, delta, mask)
    found = diff.overlaps["mask"]
    assert found["share"] == pytest.approx(found["share_by_tensor"], rel=0.2)
    assert found["iou"] == pytest.approx(found["expected_iou"], rel=0.35)
    assert found["share_by_tensor"] > found["density"] + 0.02  # the change lies in the denser tensor
    for p in range(2):
        assert diff.effective_rank[p] == pytest.approx(diff.noise_rank[p], rel=0.05)


def test_block_weights_rank_as_one_block_diagonal_matrix():
    blocks = torch.randn(3, 4, 5)
    diff = update_diff({"w": torch.zeros(3, 4, 5), "b": torch.zeros(4)}, {"w": blocks, "b": torch.zeros(4)})
    whole = torch.block_diag(*blocks.double())
    expected = whole.square().sum() / torch.linalg.matrix_norm(whole, 2).square()
    p = diff.parameters.index("w")
    assert diff.stable_rank[p] == pytest.approx(float(expected))
    assert np.isnan(diff.relative[p]) and diff.modules == ("",)


def test_no_update_is_no_division_by_zero():
    a = net()
    diff = update_diff(a, a)
    assert diff.total_norm == 0 and diff.module_share.sum() == 0 and "length 0" in diff.summary()


def test_saved_and_loaded_equal(tmp_path):
    a, b, mask = planted()
    diff = update_diff(a, b, mask, depth=1)
    assert load_result(diff.save(tmp_path / "diff")) == diff
    assert (tmp_path / "diff" / "figure.png").stat().st_size > 1000


def test_what_does_not_fit_raises():
    a, b, mask = planted()
    with pytest.raises(ValueError, match="names none of the parameters"):
        update_diff(a, b, mask, names="head.*")
    with pytest.raises(ValueError, match="different parameters"):
        update_diff(a, nn.Linear(2, 2))
    fast = update_diff(a, b, ranks=False)
    assert np.isnan(fast.effective_rank).all() and fast.share.sum() == pytest.approx(1.0)
