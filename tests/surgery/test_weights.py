"""WeightMask and WeightDelta as data: exactness, algebra, numbers, files."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from torchmem.surgery.delta_math import effective_rank, same_bits, stable_rank
from torchmem.surgery.edits import Ablate, Edits
from torchmem.surgery.weights import WeightDelta, WeightFileError, WeightMask, weights_hash


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def same_state(a, b) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def wild(dtype: torch.dtype, size: int = 4000) -> Tensor:
    """Numbers over forty decades, with zeros of both signs, equal neighbours and subnormals."""
    x = torch.randn(size, dtype=torch.float64) * 10 ** (torch.rand(size, dtype=torch.float64) * 36 - 18)
    x[torch.rand(size) < 0.1] = 0.0
    x[torch.rand(size) < 0.1] = -0.0
    x[torch.rand(size) < 0.05] = 1e-42
    x[torch.rand(size) < 0.1] = 1.0
    return x.to(dtype)


# Delta ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_delta_of_a_and_b_applied_to_a_is_b_bitwise(dtype: torch.dtype):
    a, b = ({"w": wild(dtype) if dtype != torch.float16 else torch.randn(4000).half()} for _ in range(2))
    b["w"][:100] = a["w"][:100]
    delta = WeightDelta.between(a, b)
    assert same_state(delta.apply(a), b)
    assert torch.equal((-delta).apply(b)["w"], a["w"])
    assert same_state((delta * 2 * 0.5).apply(a), b)
    plain = a["w"] + (b["w"] - a["w"])
    assert not torch.equal(plain, b["w"])  # what it is for


def test_delta_between_modules_is_about_parameters_and_passes_the_rest_on():
    a, b = (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2))
    b[1].running_mean.fill_(3.0)  # type: ignore[union-attr, operator]
    delta = WeightDelta.between(a, b)
    assert delta.names == ("0.bias", "0.weight", "1.bias", "1.weight")
    new = delta.apply(a)
    assert all(same_bits(new[n], p) for n, p in b.named_parameters())
    assert torch.equal(new["1.running_mean"], torch.zeros(3))
    assert torch.equal(a[0].weight, a.state_dict()["0.weight"])  # nothing in place
    both = WeightDelta.between(a.state_dict(), b.state_dict())  # state dicts: everything
    assert "1.running_mean" in both.names and "1.num_batches_tracked" not in both.names
    assert same_state(both.apply(a.state_dict()), b.state_dict())


def test_delta_algebra():
    a, b, c = net(0), net(1), net(2)
    ab, bc, ac = WeightDelta.between(a, b), WeightDelta.between(b, c), WeightDelta.between(a, c)
    assert torch.allclose((ab + bc).value("0.weight"), ac.value("0.weight"), atol=1e-7)
    assert (ac - bc).cosine(ab) == pytest.approx(1.0) and (ab - ab).norm() == 0.0
    assert (-ab).cosine(ab) == pytest.approx(-1.0) and (0.5 * ab).norm() == pytest.approx(ab.norm() / 2)
    assert (-ab) * -1 == ab and ab / 2 == 0.5 * ab and ab != 2 * ab
    half = (0.5 * ab).apply(a)
    assert torch.allclose(half["2.bias"], (a[2].bias + b[2].bias) / 2, atol=1e-7)  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match="must be finite"):
        _ = ab * math.inf
    along = ab.project(ac)
    assert ab.reject(ac).dot(ac) == pytest.approx(0.0, abs=1e-6)
    assert (along + ab.reject(ac) - ab).norm() == pytest.approx(0.0, abs=1e-6)
    assert along.cosine(ac) == pytest.approx(1.0)
    each = ab.reject(ac, by="tensor")
    assert all(abs(float((each.value(n) * ac.value(n)).sum())) < 1e-6 for n in ab.names)
    with pytest.raises(ValueError, match="no direction"):
        ab.project(ab - ab)


def test_deltas_of_different_parameters_add_as_if_the_absent_were_zero():
    one, two = WeightDelta({"a": torch.ones(2)}), WeightDelta({"b": torch.ones(3)})
    assert (one + two).names == ("a", "b") and one.dot(two) == 0 and math.isnan((one * 0).cosine(two))
    with pytest.raises(ValueError, match="shapes"):
        _ = one + WeightDelta({"a": torch.ones(3)})
    assert isinstance(one + Ablate("h"), Edits) and len([Ablate("h")] + one) == 2  # noqa: RUF005


def test_restricting_keeps_what_remains_exact():
    a, b = {"w": wild(torch.float32), "v": wild(torch.float32)}, {"w": wild(torch.float32), "v": wild(torch.float32)}
    delta = WeightDelta.between(a, b)
    only = delta.restrict("w").apply(a)
    assert same_bits(only["w"], b["w"]) and same_bits(only["v"], a["v"])
    mask = torch.rand(4000) > 0.5
    part = delta.restrict(WeightMask({"w": mask})).apply(a)
    assert same_bits(part["w"], torch.where(mask, b["w"], a["w"])) and same_bits(part["v"], b["v"])
    with pytest.raises(ValueError, match="no parameter matches 'u\\*'"):
        delta.restrict("u*")


def test_truncation_spectra_and_ranks():
    low = torch.randn(20, 3) @ torch.randn(3, 15)
    blocks = torch.randn(4, 6, 5)
    delta = WeightDelta({"a": low, "blocks": blocks, "conv": torch.randn(6, 2, 3, 3), "bias": torch.randn(6)})
    spectra = delta.spectra()
    assert {n: tuple(v.shape) for n, v in spectra.items()} == {"a": (15,), "blocks": (4, 5), "conv": (6,)}
    assert torch.allclose(spectra["blocks"][2], torch.linalg.svdvals(blocks[2].double()))
    assert int((spectra["a"] > 1e-4).sum()) == 3
    cut = delta.truncate(2)
    assert all(int((v > 1e-4).sum(-1).max()) == 2 for v in cut.spectra().values())
    assert torch.equal(cut.deltas["bias"], delta.deltas["bias"])
    assert (delta.truncate(3) - delta).restrict("a").norm() < 1e-4
    half = spectra["a"][2] ** 2
    assert (cut - delta).restrict("a").norm() == pytest.approx(float(half.sqrt()), rel=1e-3)  # Eckart-Young
    assert float(effective_rank(torch.ones(4))) == pytest.approx(4.0)
    assert float(stable_rank(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(1.5)
    assert float(effective_rank(torch.zeros(3))) == 0.0 == float(stable_rank(torch.zeros(3)))


def test_norms_per_tensor_and_module():
    delta = WeightDelta(
        {"a.weight": torch.full((2, 2), 3.0), "a.bias": torch.full((2,), 2.0), "b.w": torch.ones(4)}, -0.5
    )
    assert delta.norms() == pytest.approx({"a.weight": 3.0, "a.bias": 2**0.5, "b.w": 1.0})
    assert delta.norms("module") == pytest.approx({"a": 11**0.5, "b": 1.0})
    noise = delta.noise_like(3)
    assert noise.norms() == pytest.approx(delta.norms()) and abs(noise.cosine(delta)) < 0.9
    assert noise == delta.noise_like(3) != delta.noise_like(4)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "different parameters"),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, "one shape and dtype"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, "one shape and dtype"),
        ({"a": torch.ones(2)}, {"a": torch.tensor([1.0, math.nan])}, "no finite difference"),
        ({"a": torch.tensor([-3e38])}, {"a": torch.tensor([3e38])}, "no finite difference"),
        ({"a": torch.tensor([1])}, {"a": torch.tensor([2])}, "is no weight"),
    ],
)
def test_what_has_no_difference_says_so(before, after, text: str):
    with pytest.raises(ValueError, match=text):
        WeightDelta.between(before, after)


def test_edits_name_the_parameter_that_does_not_fit():
    with pytest.raises(ValueError, match=r"no parameter '0\.wieght'; did you mean 0\.weight"):
        WeightDelta({"0.wieght": torch.ones(5, 4)}).check(net(0))
    with pytest.raises(ValueError, match=r"another size"):
        WeightMask({"0.weight": torch.ones(5, 3, dtype=torch.bool)}).check(net(0))
    with pytest.raises(ValueError, match="must be a bool tensor"):
        WeightMask({"w": torch.ones(2)})
    with pytest.raises(ValueError, match="must be a floating tensor"):
        WeightDelta({"w": torch.ones(2, dtype=torch.bool)})


@pytest.mark.parametrize("exact", [True, False])
def test_gradient_of_effective_weights(exact: bool):
    a, b = {"w": wild(torch.float64, 50)}, {"w": wild(torch.float64, 50)}
    delta = WeightDelta.between(a, b) if exact else WeightDelta({"w": torch.randn(50)}, 0.3)
    assert bool(delta.corrections) == exact
    w = a["w"].clone().requires_grad_()
    weight = torch.randn(50).double()
    (delta.effective("w", w) * weight).sum().backward()
    assert torch.equal(w.grad, weight)
    batched = torch.vmap(lambda v: delta.effective("w", v))(torch.stack([a["w"], a["w"]]))
    assert torch.equal(batched[1], delta.effective("w", a["w"]))


# Mask ----------------------------------------------------------------------------------------------------------------


def masks() -> tuple[WeightMask, WeightMask]:
    one = WeightMask({"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False])})
    return one, WeightMask({"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True, True])})


def test_mask_algebra_and_numbers():
    one, two = masks()
    assert (one & two).masks["a"].tolist() == [True, False, False, False]
    assert (one | two).masks["a"].tolist() == [True, True, True, False]
    assert (~one).masks["b"].tolist() == [False, True] and ~~one == one
    assert one.counts() == {"a": (2, 4), "b": (1, 2)} and one.density == 0.5 and WeightMask({}).density == 1.0
    assert one.iou(two) == pytest.approx(2 / 5) and one.iou(one) == 1.0 and one.iou(~one) == 0.0
    only = WeightMask({"a": torch.zeros(4, dtype=torch.bool)})
    assert (only & one).masks["b"].tolist() == [True, False]  # what `only` does not name is whole there
    assert (only | one).names == ("a",)
    assert one.restrict("b").names == ("b",)
    with pytest.raises(ValueError, match="different parameters"):
        one.iou(only)


def test_expected_iou_is_what_random_masks_have():
    def draw(density: float) -> WeightMask:
        return WeightMask({"a": torch.rand(20000) < density, "b": torch.rand(5000) < 4 * density})

    one, two = draw(0.2), draw(0.1)
    assert one.iou(two) == pytest.approx(one.expected_iou(two), rel=0.05)
    sparse = WeightMask({"a": torch.arange(1000) < 15})
    assert sparse.expected_iou(sparse) == pytest.approx(0.00756, abs=1e-5)  # "about 0.008 for 1.5 % density"


def test_masks_from_patterns():
    keep = WeightMask.from_patterns(net(0), keep="0.*")
    assert keep.names == ("2.bias", "2.weight") and keep.density == 0.0
    assert WeightMask.from_patterns(net(0), drop=["2.*"]) == keep
    with pytest.raises(ValueError, match="no parameter matches"):
        WeightMask.from_patterns(net(0), drop="3.*")
    with pytest.raises(ValueError, match="either keep"):
        WeightMask.from_patterns(net(0))


def test_masked_weights_are_zero_whatever_they_were_and_kept_ones_bitwise():
    w = torch.tensor([1.5, math.nan, -0.0, math.inf], requires_grad=True)
    mask = WeightMask({"w": torch.tensor([True, False, True, False])})
    out = mask.effective("w", w)
    assert same_bits(out, torch.tensor([1.5, 0.0, -0.0, 0.0]))
    out.sum().backward()
    assert w.grad.tolist() == [1.0, 0.0, 1.0, 0.0]
    whole = WeightMask({"w": torch.ones(4, dtype=torch.bool)})
    assert same_bits(whole.effective("w", w), w)


# Files ---------------------------------------------------------------------------------------------------------------


def test_files_come_back_equal_and_know_their_model(tmp_path):
    a, b = net(0), net(1)
    delta = -0.25 * WeightDelta.between(a, b)
    found = WeightDelta.load(delta.save(tmp_path / "d.safetensors"), a)
    assert found == delta and found.base == weights_hash(a) and found.scale == -0.25
    mask = WeightMask({"0.weight": torch.rand(5, 4) > 0.5}, base=weights_hash(a))
    assert WeightMask.load(mask.save(tmp_path / "m.safetensors"), a) == mask
    with pytest.raises(WeightFileError, match="made for other weights"):
        WeightMask.load(tmp_path / "m.safetensors", b)
    assert WeightMask.load(tmp_path / "m.safetensors", b, any_base=True) == mask
    with pytest.raises(ValueError, match="no parameter"):
        WeightMask.load(tmp_path / "m.safetensors", nn.Linear(2, 2), any_base=True)
    with pytest.raises(WeightFileError, match="is a WeightMask, not a WeightDelta"):
        WeightDelta.load(tmp_path / "m.safetensors")


def test_damaged_files_name_themselves(tmp_path):
    with pytest.raises(WeightFileError, match=r"none\.safetensors does not exist"):
        WeightDelta.load(tmp_path / "none.safetensors")
    path = WeightDelta({"w": torch.ones(8)}).save(tmp_path / "d.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(WeightFileError, match="not a readable"):
        WeightDelta.load(path)
    path.write_bytes(content[:-3] + b"abc")
    with pytest.raises(WeightFileError, match="altered"):
        WeightDelta.load(path)
