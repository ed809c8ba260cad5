"""S5 layers and stacks against the recorded arrays of the official program."""

from __future__ import annotations

import pytest
import torch

from tests.models.r2i.arrays import arrays, layer, load, ssm_config, tensor, under
from torchmem.models.importers.r2i import layer_arrays, stack_arrays
from torchmem.models.r2i.block import Stack
from torchmem.models.r2i.hippo import hippo_normal, legs
from torchmem.models.r2i.legacy import upstream_scan
from torchmem.models.r2i.scan import diagonal_scan
from torchmem.models.r2i.ssm import S5

LAYERS = ("layer_bilinear", "layer_zoh", "layer_bilinear_conj", "layer_zoh_conj_clip", "layer_long")
BLOCKS = {
    "block_postnorm_glu": {"layers": 3},
    "block_prenorm_glu_zoh": {"layers": 2, "prenorm": True, "discretisation": "zoh"},
    "block_nonorm_mlp": {"layers": 2, "norm": False, "glu": False},
}
# recorded suffix -> whether flags count, and whether init is zero
KINDS = {"noreset": (False, False), "reset": (True, False), "reset_zero": (True, True)}


def tolerance(name: str) -> float:
    return 2e-4 if name == "layer_long" else 2e-5


def close(ours: torch.Tensor, recorded: torch.Tensor, limit: float) -> None:
    error = float((ours.detach() - recorded).abs().max() / recorded.abs().max().clamp(min=1.0))
    assert error <= limit, f"off by {error:.1e}"


def inputs(name: str, kind: str) -> tuple[torch.Tensor, ...]:
    flags, zero = KINDS[kind]
    first, init = tensor(name, "is_first").bool(), tensor(name, "init")
    start = tensor(name, "x0")
    return start, init * (not zero), first & flags


def run(s5: S5, u, start, init, first, scan=diagonal_scan):
    abar, gain = s5.discretised()
    pairs = (-1, 2)
    drive = s5.drive(u, gain).unflatten(-1, pairs)
    x = scan(drive, abar, start.unflatten(-1, pairs), init.unflatten(-1, pairs), first).flatten(-2)
    return s5.read_out(x, u), x


def stack(name: str) -> Stack:
    raw = stack_arrays(under(name, "param."))
    width, states = raw["layers.0.s5.d"].shape[0], raw["layers.0.s5.log_step"].shape[0]
    made = Stack(width, ssm_config(states, **BLOCKS[name]))
    load(made, raw)
    return made


def agrees(ours: dict[str, torch.Tensor], recorded: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        error = float((ours[name] - value).abs().max() / value.abs().max().clamp(min=1e-6))
        assert error <= 1e-3, f"{name}: gradient off by {error:.1e} of its largest entry"


@pytest.mark.parametrize("size", [8, 16, 64])
def test_hippo(size: int):
    recorded = arrays("hippo")
    values, vectors = hippo_normal(size)
    torch.testing.assert_close(legs(size).float(), torch.as_tensor(recorded[f"A_{size}"]))
    ours = vectors @ torch.diag(values) @ vectors.mH
    theirs = [torch.as_tensor(recorded[f"{n}_{size}"]).to(torch.complex128) for n in ("V", "Lambda")]
    close(torch.view_as_real(ours), torch.view_as_real(theirs[0] @ torch.diag(theirs[1]) @ theirs[0].mH), 1e-5)
    assert float((values - theirs[1]).abs().max()) < (1e-3 if size == 64 else 1e-5)  # theirs are float32
    inputs = torch.sqrt(2 * torch.arange(size, dtype=torch.float64) + 1)
    close((vectors.mH @ inputs.to(vectors.dtype)).abs(), torch.as_tensor(recorded[f"absVhB_{size}"]).double(), 1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_discretisation(name: str):
    s5 = layer(name)
    abar, gain = s5.discretised()
    close(abar.flatten(), tensor(name, "Lambda_bar"), 1e-6)
    identity = torch.eye(s5.d.shape[0])
    bbar = s5.drive(identity, gain).mT.unflatten(0, (-1, 2)).movedim(1, -1).flatten(-2)
    close(bbar, tensor(name, "B_bar"), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_in_parallel(name: str, kind: str):
    y, x = run(layer(name), tensor(name, "u"), *inputs(name, kind))
    close(y, tensor(name, f"y_rec_{kind}"), tolerance(name))
    close(x, tensor(name, f"x_rec_{kind}"), tolerance(name))
    if kind == "noreset":
        close(y, tensor(name, "y_par_noreset"), tolerance(name))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_gradients(name: str):
    s5, (start, init, first) = layer(name), inputs(name, "noreset")
    u = tensor(name, "u").requires_grad_()
    start.requires_grad_()
    y, _ = run(s5, u, start, init, first)
    (tensor(name, "loss_w") * y).sum().backward()
    recorded = under(name, "grad.")
    x0 = torch.stack([torch.as_tensor(recorded[f"x0_{part}"]) for part in ("re", "im")], -1).flatten(-2)
    ours = {key: p.grad for key, p in s5.named_parameters()} | {"u": u.grad, "x0": start.grad}
    agrees(ours, {**layer_arrays(under(name, "grad.param.")), "u": torch.as_tensor(recorded["u"]), "x0": x0})


@pytest.mark.parametrize("name", LAYERS)
def test_resets_as_upstream_makes_them(name: str):
    y, x = run(layer(name), tensor(name, "u"), *inputs(name, "reset"), scan=upstream_scan)
    close(y, tensor(name, "y_par_reset_UPSTREAM_QUIRK"), tolerance(name))
    close(x, tensor(name, "x_par_reset_UPSTREAM_QUIRK"), tolerance(name))
    y, _ = run(layer(name), tensor(name, "u"), *inputs(name, "reset_zero"), scan=upstream_scan)
    close(y, tensor(name, "y_par_reset_zero_UPSTREAM_SHIFT"), tolerance(name))


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_stack(name: str, kind: str, stepwise: bool):
    start, init, first = inputs(name, kind)
    y, x = stack(name).sequence(tensor(name, "u"), start, init, first, stepwise)
    close(y, tensor(name, f"y_rec_{kind}"), 2e-5)
    close(x, tensor(name, f"x_rec_{kind}"), 2e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_stack_gradients(name: str):
    made, (start, init, first) = stack(name), inputs(name, "noreset")
    u = tensor(name, "u").requires_grad_()
    y, _ = made.sequence(u, start, init, first)
    (tensor(name, "loss_w") * y).sum().backward()
    ours = {key: p.grad for key, p in made.named_parameters()} | {"u": u.grad}
    agrees(ours, {**stack_arrays(under(name, "grad.param.")), "u": tensor(name, "grad.u")})


def test_stack_as_upstream_resets_it():
    made = stack("block_postnorm_glu")
    for one in made.layers:
        one.config.legacy_reset = True
    y, _ = made.sequence(tensor("block_postnorm_glu", "u"), *inputs("block_postnorm_glu", "reset"))
    close(y, tensor("block_postnorm_glu", "y_par_reset_UPSTREAM_QUIRK"), 5e-5)


def test_reset_semantics_of_the_recorded_scan():
    """The correct recurrence of `scan_reset_modes`, and what the original's operator returns for the same."""
    found = arrays("scan_reset_modes")
    u, bbar = torch.as_tensor(found["u"]), torch.as_tensor(found["B_bar"])
    b, a, start, init = (
        torch.view_as_real(value.contiguous())
        for value in (
            (u.to(bbar.dtype) @ bbar.T)[None],
            *(torch.as_tensor(found[k]) for k in ("A_bar", "x0", "init")),
        )
    )
    given = (b, a, start[None], init[None], torch.as_tensor(found["is_first"])[None].bool())
    close(diagonal_scan(*given)[0], torch.view_as_real(torch.as_tensor(found["x_correct_np64"])).float(), 2e-5)
    close(upstream_scan(*given)[0], torch.view_as_real(torch.as_tensor(found["x_init"])), 2e-5)


@pytest.mark.parametrize("name", ("layer_bilinear", "layer_bilinear_conj"))
def test_first_values(name: str):
    """Shapes, eigenvalues and sizes as the original's untouched initialisation, on a layer large enough to tell."""
    assert {k: v.shape for k, v in layer(name).state_dict().items()} == {
        k: v.shape for k, v in layer_arrays(under(name, "initparam.")).items()
    }
    torch.manual_seed(0)
    s5 = S5(48, ssm_config(32, 4, conj_sym=name.endswith("conj")))
    full = 64 if name.endswith("conj") else 32
    assert torch.allclose(s5.lambda_re, torch.tensor(-0.5)) and (s5.lambda_im[:8] <= 0).all() == (full == 64)
    size = {name: float(p.detach().square().mean() * 2) for name, p in s5.named_parameters()}  # mean |complex|^2
    assert size["b"] == pytest.approx(1 / full, rel=0.2)  # V is unitary, and B has variance 1 / P'
    assert size["c"] == pytest.approx(2 / (48 * full), rel=0.2)
    assert s5.log_step.exp().min() >= 1e-3 and s5.log_step.exp().max() <= 0.1
