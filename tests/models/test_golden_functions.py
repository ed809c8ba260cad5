"""Stand-alone functions of the original on random inputs: returns, normaliser, distributions, layers, initialisers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models import golden
from torchmem.models import dists, layers
from torchmem.models.returns import lambda_return, percentile_range

pytestmark = pytest.mark.usefixtures("product")
# Functions that DreamerV3's defaults never call and this package does not have.
UNUSED = ("norm/perc_debias", "norm/meanstd", "layer/layernorm", "layer/conv5_stride2", "layer/conv5_transp2")


def recorded(prefix: str) -> dict[str, Tensor]:
    found = golden.arrays("functions").items()
    return {k.removeprefix(prefix): torch.as_tensor(v) for k, v in found if k.startswith(prefix)}


def near(ours: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    scale = float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=0, atol=tolerance * max(scale, 1e-6))


def test_symlog_and_symexp():
    for name, function in (("symlog", dists.symlog), ("symexp", dists.symexp)):
        g = recorded(f"{name}/")
        torch.testing.assert_close(function(g["in"]), g["out"], rtol=2e-6, atol=1e-7)


def test_lambda_returns():
    g = recorded("lam/")
    live = (1 - g["term"].float()) * (1 - 1 / 333)
    near(lambda_return(g["rew"], live, g["boot"], 0.95, g["last"]), g["ret_replay"])
    near(lambda_return(g["rew"], g["con"], g["val_UNUSED"], 0.95), g["ret_imag"])
    near(torch.cumprod(g["con"], 1), g["weight_imag"])


def test_return_range():
    g = recorded("norm/")
    low = high = torch.zeros(())
    for x, (offset, scale) in zip(g["x"], g["perc_retnorm_default/offset_scale"], strict=True):
        now_low, now_high = percentile_range(x, 5.0, 95.0)
        low, high = torch.lerp(low, now_low, 0.01), torch.lerp(high, now_high, 0.01)
        near(low, offset)
        near((high - low).clamp(min=1.0), scale)
    near(low, g["perc_retnorm_default/final/n/lo/value"])
    near(high, g["perc_retnorm_default/final/n/hi/value"])
    # [low, high] of each x
    ranges = torch.stack([torch.stack(percentile_range(x, 5.0, 95.0)) for x in g["x"]])
    near(ranges.flatten(), g["percentile_5_95"])


@pytest.mark.parametrize("count", [255, 41, 254])
def test_two_hot(count: int):
    g = recorded(f"twohot{count}/")
    bins = dists.symexp_bins(count)
    # float32 linspace differs in the last bit of -20 (spec, trap 3), which shows in the bins near 0
    torch.testing.assert_close(bins, g["bins"], rtol=3e-6, atol=2.5e-6)
    assert torch.equal(bins, -bins.flip(0))
    near(dists.twohot_mean(g["logits"], g["bins"]), g["pred"])
    near(dists.twohot_mean(g["logits"], bins), g["pred"], 5e-6)
    assert float(dists.twohot_mean(torch.zeros(1, count), bins)) == 0.0 == float(g["pred_uniform"])
    logits = g["logits"].clone().requires_grad_()
    loss = dists.twohot_loss(logits, g["bins"], g["target"])
    near(loss, g["loss"])
    near(torch.autograd.grad(loss.sum(), logits)[0], g["dloss"], 5e-6)


def test_categorical_latents():
    g = recorded("cat/")
    first, second = g["l1"].clone().requires_grad_(), g["l2"].clone().requires_grad_()
    logp, logq = dists.unimix(first, 0.01), dists.unimix(second, 0.01)
    near(logp, g["unimix_logits1"])
    kl = dists.categorical_kl(logp, logq)
    near(kl, g["kl_unimix"])
    floored = kl.clamp(min=1.0)
    near(floored, g["kl_freenats"])
    grads = torch.autograd.grad(floored.sum(), (first, second), retain_graph=True)
    near(grads[0], g["dkl_dl1"])
    near(grads[1], g["dkl_dl2"])
    near(dists.categorical_entropy(logp).sum(-1), g["ent_unimix"])
    plain = dists.unimix(first, 0.0)
    near(plain.gather(-1, g["event"].unsqueeze(-1)).squeeze(-1), g["logp_plain"])
    near(dists.categorical_entropy(plain), g["ent_plain"])
    one_hot = torch.nn.functional.one_hot(g["event"], 8)
    sample = dists.straight_through(logp, golden.forcing(one_hot))
    assert torch.equal(sample.argmax(-1), g["event"])
    near(torch.autograd.grad((sample * g["st_weight"]).sum(), first)[0], g["st_grad"])


def test_binary_and_bounded_normal():
    g = recorded("bin/")
    near(dists.binary_loss(g["logit"], g["label"]), g["loss"])
    near(torch.sigmoid(g["logit"]), g["prob1"])
    assert torch.equal(g["logit"] > 0, g["pred"])
    g = recorded("bn/")
    mean, std = dists.bounded_normal(g["raw_mean"], g["raw_std"], 0.1, 1.0)
    near(mean, g["mean"])
    near(std, g["std"])
    near(dists.normal_logp(mean, std, g["event"]), g["logp"])
    near(dists.normal_entropy(std), g["entropy"])
    for bound, key in ((0.1, "minent_dim"), (1.0, "maxent_dim")):
        near(dists.normal_entropy(torch.tensor([bound])), g[key])


@torch.no_grad()
def test_layers():
    g = recorded("layer/")

    def filled(layer: torch.nn.Module, name: str) -> torch.nn.Module:
        kernel = g[f"{name}/kernel"]
        if isinstance(layer, layers.Conv):
            kernel = kernel.permute(3, 2, 0, 1)
        else:
            kernel = kernel.mT  # (out, in), within each block too
        layer.load_state_dict({"weight": kernel.contiguous(), "bias": g[f"{name}/bias"]})
        return layer

    linear = filled(layers.Linear(5, 6), "linear")
    near(linear(g["linear/x"]), g["linear/y"])
    shaped = filled(layers.Linear(5, 6), "linear_shape")
    near(shaped(g["linear_shape/x"]).unflatten(-1, (2, 3)), g["linear_shape/y"])
    near(filled(layers.BlockLinear(20, 12, 4), "blocklinear")(g["blocklinear/x"]), g["blocklinear/y"])
    near(filled(layers.Conv(3, 4, 5), "conv5")(g["conv5/x"]), g["conv5/y"])
    for name, eps in (("rms", 1e-4), ("rms_1em8", 1e-8)):
        norm = layers.RMSNorm(20, eps)
        norm.scale.copy_(g[f"{name}/scale"])
        near(norm(g[f"{name}/x"]), g[f"{name}/y"])
    mlp = layers.MLP(5, 8, 2)
    for i, dense in enumerate(mlp):
        filled(dense.linear, f"mlp/linear{i}")
        dense.norm.scale.copy_(g[f"mlp/norm{i}/scale"])
    near(mlp(g["mlp/x"]), g["mlp/y"])


def test_slow_mix():
    g = recorded("slow/")
    near(torch.lerp(g["dst"], g["src"], 0.02), g["out"])


def test_every_recorded_function_is_compared_or_named_as_unused():
    groups = {"symlog", "symexp", "lam", "norm", "twohot255", "twohot41", "twohot254", "cat", "bin", "bn", "layer"}
    assert {k.split("/")[0] for k in golden.arrays("functions")} == groups | {"init", "slow"}
    ours = {"layer": {"linear", "linear_shape", "blocklinear", "rms", "rms_1em8", "conv5", "mlp"}}
    ours["norm"] = {"x", "perc_retnorm_default", "percentile_5_95"}
    for group, names in ours.items():
        left = {k for k in golden.arrays("functions") if k.startswith(f"{group}/") and k.split("/")[1] not in names}
        assert all(k.startswith(UNUSED) for k in left), left
