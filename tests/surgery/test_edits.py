"""Edits of activations: each test names, by what it asserts, the mistake that it would catch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from torchmem.surgery.edits import Ablate, At, Clamp, Edits, Patch, Project, SiteEdit, Steer
from torchmem.surgery.movement import Collapse, Swap
from torchmem.types import Site

B, T, S, K = 3, 5, 2, 4
N = S * K


def values() -> torch.Tensor:
    return torch.randn(B, T, S, K)


def unroll(steps=range(T)) -> At:
    return At(steps=steps)


def site(*shape: int) -> Site:
    return Site("logit", "dynamics.logit", ("B", "T", "S", "K"), shape, "sequence")


def each_kind(**where) -> list[SiteEdit]:
    """One of every kind that changes all it may."""
    return [
        Patch("logit", torch.randn(B, T, S, K), **where),
        Ablate("logit", **where),
        Ablate("logit", "mean", mean=torch.randn(S, K), **where),
        Ablate("logit", "resample", bank=torch.randn(7, S, K), **where),
        Clamp("logit", 9.0, **where),
        Clamp("logit", low=5.0, **where),
        Steer("logit", torch.ones(S, K), 2.0, **where),
        Project("logit", torch.randn(2, N), **where),
    ]


# Selection -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(8))
def test_only_the_selected_entries_change_and_never_in_place(place: int):
    edit = each_kind(time=(1, 3), rows=(0, 2), units=(5, 2))[place]
    x = values()
    before = x.clone()
    new = edit.apply(x, unroll())
    chosen = torch.zeros(B, T, N, dtype=torch.bool)
    for row in (0, 2):
        for step in (1, 3):
            chosen[row, step, [5, 2]] = True
    chosen = chosen.view(x.shape)
    assert torch.equal(x, before)
    assert torch.equal(new[~chosen], x[~chosen])
    assert (new[chosen] != x[chosen]).all()


@pytest.mark.parametrize("place", range(8))
def test_a_view_of_one_step_is_edited_as_that_step_of_the_sequence(place: int):
    """A cell that runs once per step and a layer that sees the sequence must mean the same by step 3."""
    edit = each_kind(time=slice(1, 4), units=(0, 6), rows=(1,))[place]
    x = values()
    whole = edit.apply(x, unroll())
    single = [edit.apply(x[:, t : t + 1], unroll([t])) for t in range(T)]
    assert torch.allclose(whole, torch.cat(single, 1), rtol=0, atol=1e-6)


def test_nothing_selected_gives_back_the_very_tensor():
    x = values()
    for where in ({"time": 7}, {"time": slice(9, None)}, {"rows": ()}, {"units": ()}, {"rows": slice(5, None)}):
        assert Ablate("logit", **where).apply(x, unroll()) is x


def test_steps_are_absolute_numbers_of_the_pass():
    x = values()
    new = Ablate("logit", time=slice(10, None, 3)).apply(x, unroll(range(9, 9 + T)))
    assert [bool((new[:, i] == 0).all()) for i in range(T)] == [False, True, False, False, True]


def test_units_from_arrays_ranges_and_masks_are_the_same_edit():
    import numpy as np

    mask = torch.zeros(S, K, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = True
    forms = [(1, 7), [1, 7], np.array([1, 7]), torch.tensor([1, 7]), range(1, 8, 6), mask, mask.numpy()]
    assert len({Ablate("logit", units=form) for form in forms}) == 1


def test_values_of_one_dimension_per_row_and_step_can_be_edited():
    x = torch.randn(B, T)
    assert torch.equal(Steer("value", torch.tensor(1.0)).apply(x, unroll()), x + 1)
    assert torch.equal(Patch("value", x + 3).apply(x, unroll()), x + 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_of_the_agent_stays(dtype: torch.dtype):
    x = values().to(dtype)
    for edit in each_kind() + each_kind(units=(1, 4)):
        assert edit.apply(x, unroll()).dtype == dtype


def test_numbers_are_exact_in_double_precision():
    x = values().double()
    assert Clamp("logit", 0.1).apply(x, unroll()).flatten()[0].item() == 0.1


def test_edits_used_in_inference_mode_can_meet_autograd_later():
    edit = Steer("logit", torch.randn(S, K))
    with torch.inference_mode():
        edit.apply(values(), unroll())
    x = values().requires_grad_()
    (edit.apply(x, unroll()) * x).sum().backward()


# Kinds ---------------------------------------------------------------------------------------------------------------


def test_patch_with_its_own_values_is_the_identity_bitwise():
    x = values()
    for where in ({}, {"time": (1, 2)}, {"units": (3,), "rows": (1,)}):
        assert torch.equal(Patch("logit", x, **where).apply(x, unroll()), x)


def test_patch_aligns_source_and_target_in_time():
    source = values()
    new = Patch("logit", source, offset=-2, time=slice(2, 5)).apply(values(), unroll())
    assert torch.equal(new[:, 2:5], source[:, 0:3])


def test_patch_of_one_row_goes_to_all_and_others_keep_their_rows():
    x, one, many = values(), torch.randn(1, T, S, K), values()
    assert torch.equal(Patch("logit", one, rows=(0, 2)).apply(x, unroll())[2], one[0])
    assert torch.equal(Patch("logit", many, rows=(2,)).apply(x, unroll())[2], many[2])


def test_patch_does_not_hand_out_its_own_memory():
    source = values()
    edit = Patch("logit", source)
    edit.apply(values(), unroll()).zero_()
    source.zero_()
    assert (edit.apply(values(), unroll()) != 0).all()


def test_patch_without_a_source_step_says_so_early_where_it_can():
    with pytest.raises(ValueError, match=r"step 5 has no source.*steps 0 to 4.*offset \+0"):
        Patch("logit", values(), time=(4, 5))
    with pytest.raises(ValueError, match=r"step 0 has no source.*steps 1 to 5"):
        Patch("logit", values(), offset=-1, time=slice(0, 3))
    late = Patch("logit", values())
    with pytest.raises(ValueError, match="step 5 has no source"):
        late.apply(values(), unroll(range(1, 1 + T)))
    with pytest.raises(ValueError, match="values of 3 rows for a pass of 2"):
        late.apply(values()[:2], unroll())


def test_ablations():
    x, mean, bank = values(), torch.randn(S, K), torch.randn(50, S, K)
    assert (Ablate("logit").apply(torch.full_like(x, torch.nan), unroll()) == 0).all()  # x * 0 would stay NaN
    assert torch.equal(Ablate("logit", "mean", mean=mean).apply(x, unroll()), mean.expand_as(x))
    new = Ablate("logit", "resample", bank=bank, seed=1).apply(x, unroll())
    found = (new.reshape(-1, 1, S, K) == bank).all((2, 3))
    assert (found.sum(1) == 1).all()  # whole bank rows, never a mixture of several
    assert len(found.float().argmax(1).unique()) > 5
    again = Ablate("logit", "resample", bank=bank, seed=1)
    assert torch.equal(again.apply(x, unroll()), new)
    assert torch.equal(again.apply(x[:2], unroll())[1], new[1])  # of a row: whatever other rows there are
    assert torch.equal(again.apply(x[:, 2:3], unroll([2])), new[:, 2:3])
    assert not torch.equal(Ablate("logit", "resample", bank=bank, seed=2).apply(x, unroll()), new)


def test_resampling_is_uniform_over_the_bank():
    edit = Ablate("a", "resample", bank=torch.arange(4.0).unsqueeze(1))
    drawn = edit.apply(torch.zeros(40, 100, 1), unroll(range(100)))
    counts = torch.bincount(drawn.flatten().long(), minlength=4)
    assert (counts - 1000).abs().max() < 120  # 4.4 standard deviations


def test_clamp_and_steer():
    x = values()
    assert torch.equal(Clamp("logit", low=-0.5, high=0.5).apply(x, unroll()), x.clamp(-0.5, 0.5))
    high = torch.randn(S, K)
    assert torch.equal(Clamp("logit", high=high).apply(x, unroll()), x.minimum(high.expand_as(x)))
    direction = torch.randn(S, K)
    assert torch.equal(Steer("logit", direction, -2.0).apply(x, unroll()), x - 2 * direction)
    picked = Steer("logit", direction, units=(6, 1)).apply(x, unroll()).flatten(2)
    assert torch.equal(picked[..., [6, 1]], (x + direction).flatten(2)[..., [6, 1]])


def test_projection_removes_or_keeps_the_span_of_directions_that_are_not_orthogonal():
    basis = torch.randn(2, N, dtype=torch.float64)
    basis[1] += 3 * basis[0]
    x = values().double()
    mean = torch.randn(S, K, dtype=torch.float64)
    gone = Project("logit", basis).apply(x, unroll())
    assert (gone.flatten(2) @ basis.T).abs().max() < 1e-12
    kept = Project("logit", basis, keep=True).apply(x, unroll())
    assert torch.allclose(gone + kept, x)
    assert torch.allclose(Project("logit", basis).apply(gone, unroll()), gone)  # a projection, not a subtraction
    centred = Project("logit", basis, mean=mean).apply(x, unroll())
    assert torch.allclose((centred - mean).flatten(2) @ basis.T, torch.zeros(1, dtype=torch.float64))
    some = Project("logit", basis, units=(0, 3, 5)).apply(x, unroll()).flatten(2)
    assert (some[..., [0, 3, 5]] @ basis[:, [0, 3, 5]].T).abs().max() < 1e-12
    with pytest.raises(ValueError, match="span only 1 dim"):
        Project("logit", torch.stack([basis[0], 2 * basis[0]]))


def test_a_projection_with_a_dual_holds_what_the_dual_reads_and_nothing_beside_it():
    """Readings of a skew basis: one of them is held, and the others stay, which an orthogonal projection breaks."""
    basis = torch.randn(3, N, dtype=torch.float64)
    basis[1] += 3 * basis[0]
    dual = torch.linalg.pinv(basis).T
    point = torch.randn(S, K, dtype=torch.float64)
    x = values().double()
    for held in ([0], [0, 2]):
        new = Project("logit", basis[held], mean=point, dual=dual[held]).apply(x, unroll())
        was, now = ((one - point).flatten(2) @ dual.T for one in (x, new))
        others = [k for k in range(3) if k not in held]
        assert now[..., held].abs().max() < 1e-12 and torch.allclose(now[..., others], was[..., others])
    plain = Project("logit", basis[[0]], mean=point).apply(x, unroll())
    assert ((plain - point).flatten(2) @ dual[0]).abs().max() > 0.1
    with pytest.raises(ValueError, match="is not 1"):
        Project("logit", basis[[0]], dual=2 * dual[[0]])
    with pytest.raises(ValueError, match="does not match"):
        Project("logit", basis[[0]], dual=dual)


# Data ----------------------------------------------------------------------------------------------------------------


def test_equal_by_content_and_different_by_any_field():
    source = values()
    a, b = Patch("logit", source), Patch("logit", source.clone())
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    near = source.clone()
    near[0, 0, 0, 0] = torch.nextafter(near[0, 0, 0, 0], torch.tensor(9.0))
    others = [
        Patch("logit", near),
        Patch("logit", source, offset=1),
        Patch("logit", source, time=1),
        Patch("logit", source, rows=(0,)),
        Patch("logit", source, units=(0,)),
        Patch("deter", source),
        Patch("logit", source.double()),
        Patch("logit", source.flatten(2)),
    ]
    assert len({a, *others}) == 1 + len(others)
    assert Swap("h", source[0, :2, 0], source[1, :2, 0]) != Swap("h", source[1, :2, 0], source[0, :2, 0])
    assert Ablate("h") != Clamp("h", 0.0)


def test_an_edit_is_frozen_and_owns_its_tensors():
    direction = torch.ones(S, K)
    edit = Steer("logit", direction)
    direction.fill_(100)
    assert torch.equal(edit.apply(torch.zeros(1, 1, S, K), unroll([0])), torch.ones(1, 1, S, K))
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.strength = 3.0  # type: ignore[misc]


def test_edits_compose_in_order():
    a, b, c = Steer("h", torch.ones(2)), Clamp("h", high=0.5), Ablate("h")
    assert tuple(a + b) == (a, b) and tuple(a + b + c) == (a, b, c) and [a] + Edits.of(b) == Edits([a, b])  # noqa: RUF005
    assert (a + b) != (b + a) and (a + b).digest != (b + a).digest
    x = torch.zeros(1, 1, 2)
    forward = (a + b)[1].apply((a + b)[0].apply(x, unroll([0])), unroll([0]))
    backward = (b + a)[1].apply((b + a)[0].apply(x, unroll([0])), unroll([0]))
    assert forward.tolist() == [[[0.5, 0.5]]] and backward.tolist() == [[[1.0, 1.0]]]
    with pytest.raises(TypeError, match=r"edits\[1\] is str"):
        Edits.of([a, "dynamics.deter"])  # type: ignore[list-item]


def test_gradients_flow_to_untouched_values_and_into_the_edit():
    x = values().requires_grad_()
    direction = torch.randn(S, K, requires_grad=True)
    edits = Steer("logit", direction, 2.0, time=(1,)) + Ablate("logit", units=(0,))
    y = x
    for edit in edits:
        y = edit.apply(y, unroll())
    y.sum().backward()
    expected = torch.ones(B, T, N)
    expected[..., 0] = 0
    assert x.grad is not None and torch.equal(x.grad.flatten(2), expected)
    own = torch.full((N,), 2.0 * B)
    own[0] = 0
    assert direction.grad is not None and torch.equal(direction.grad.flatten(), own)
    y2 = edits[0].apply(x.detach(), unroll())
    y2.sum().backward()  # a second pass through the same edit: nothing of the first graph is kept


def test_what_depends_on_steps_says_so():
    source = torch.randn(1, 3, 2)
    assert Patch("h", source).stepwise and Ablate("h", time=2).stepwise
    assert Ablate("h", "resample", bank=source[0]).stepwise and not Ablate("h").stepwise
    assert Ablate("h", units=(0,)).everywhere
    for edit in (Ablate("h", rows=(0,)), Patch("h", source), Collapse("h", source[0, :1])):
        assert not edit.everywhere


# Wrong uses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Ablate("h", time=-1), "count from 0"),
        (lambda: Ablate("h", time=slice(-3, None)), "count from 0"),
        (lambda: Ablate("h", units=(1, 1)), "must not repeat"),
        (lambda: Ablate("h", units=1.5), "must be integers"),
        (lambda: Ablate("h", "median"), "choose zero, mean or resample"),
        (lambda: Ablate("h", "mean"), "needs mean="),
        (lambda: Ablate("h", bank=torch.ones(2, 2)), "takes no bank="),
        (lambda: Clamp("h"), "either value="),
        (lambda: Clamp("h", 1.0, low=0.0), "either value="),
        (lambda: Clamp("h", low=1.0, high=0.0), "low is above high"),
        (lambda: Steer("h", torch.ones(2), float("nan")), "must be finite"),
        (lambda: Steer("h", "left"), "must be a tensor"),
        (lambda: Patch("h", torch.ones(3)), "batch and a time axis"),
        (lambda: Project("h", torch.ones(3)), r"must be \(K, N\)"),
        (lambda: Project("h", torch.zeros(1, 3)), "direction 0 is zero"),
        (lambda: Ablate(3), "must be the name of a site"),
    ],
)
def test_wrong_arguments_fail_at_once(make, text: str):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    "edit",
    [
        Ablate("logit", units=(N,)),
        Patch("logit", torch.ones(1, 1, S, K + 1)),
        Ablate("logit", "mean", mean=torch.ones(N)),
        Ablate("logit", "resample", bank=torch.ones(2, K, S)),
        Clamp("logit", torch.ones(N)),
        Steer("logit", torch.ones(K)),
        Project("logit", torch.ones(1, N + 1)),
        Swap("logit", torch.ones(1, N + 1), torch.zeros(1, N + 1)),
        Collapse("logit", torch.ones(1, 2), units=(5,)),
    ],
)
def test_check_names_the_site_and_the_shape(edit: SiteEdit):
    with pytest.raises(ValueError, match=r"logit.*(shape|units)"):
        edit.check(site(S, K))


def test_check_lets_what_fits_pass():
    for edit in each_kind(units=(0, N - 1)):
        edit.check(site(S, K))
    Swap("logit", torch.randn(2, S, K), torch.randn(2, S, K)).check(site(S, K))


def test_a_row_that_the_pass_lacks_raises():
    with pytest.raises(ValueError, match="row 3 does not exist; this pass has rows 0 to 2"):
        Ablate("logit", rows=(0, 3)).apply(values(), unroll())
