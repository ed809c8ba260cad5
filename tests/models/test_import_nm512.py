"""latest.pt of NM512/dreamerv3-torch: the forward pass, written out from its arrays alone; refusals by name.

Against the program itself, run outside this repository on its own checkpoints (discrete, continuous, vector, default
sizes, compiled), h, posterior and actor differ by 0 to 2e-6 over 50 steps with resets.
"""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F

from torchmem.cli import main
from torchmem.models.checkpoint import load
from torchmem.models.importers.nm512 import NM512Error, from_state_dict, import_latest, read
from torchmem.models.noise import Noise
from torchmem.surgery.edits import Ablate
from torchmem.surgery.model import Model
from torchmem.types import EnvSpec, Space

D, H, S, U, A, SIDE = 24, 20, 4, 16, 3, 16  # deter, hidden, variables and classes, units, actions, pixels
STAGES, DEPTH = 2, 4
SPEC = EnvSpec(
    name="dummy", obs={"image": Space((SIDE, SIDE, 3), "uint8"), "pose": Space((5,), "float32")}, control_hz=1.0,
    action={"action": Space((), "int64", classes=A)},
)  # fmt: skip


def arrays(seed=0):
    """The keys of its agent_state_dict, with random numbers."""
    g = torch.Generator().manual_seed(seed)
    out: dict[str, torch.Tensor] = {}

    def put(name, *shape, scale=1.0):
        out[name] = torch.randn(shape, generator=g) * scale / math.sqrt(max(1, math.prod(shape[1:])))

    def norm(name, size):
        out[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=g)
        out[f"{name}.bias"] = 0.1 * torch.randn(size, generator=g)

    def dense(linear, norm_name, size_in, size_out):
        put(f"{linear}.weight", size_out, size_in)
        norm(norm_name, size_out)

    def head(path, name, size_out, last="mean_layer"):
        for i in range(2):
            dense(f"{path}.layers.{name}_linear{i}", f"{path}.layers.{name}_norm{i}", Z + D if i == 0 else U, U)
        put(f"{path}.{last}.weight", size_out, U)
        put(f"{path}.{last}.bias", size_out)

    Z, embed = S * S, DEPTH * 2 ** (STAGES - 1) * (SIDE // 2**STAGES) ** 2 + U
    for i in range(STAGES):
        put(f"_wm.encoder._cnn.layers.{3 * i}.weight", DEPTH * 2**i, 3 if i == 0 else DEPTH * 2 ** (i - 1), 4, 4)
        norm(f"_wm.encoder._cnn.layers.{3 * i + 1}.norm", DEPTH * 2**i)
    for i in range(2):
        dense(f"_wm.encoder._mlp.layers.Encoder_linear{i}", f"_wm.encoder._mlp.layers.Encoder_norm{i}",
              5 if i == 0 else U, U)  # fmt: skip
        dense(f"_wm.heads.decoder._mlp.layers.Decoder_linear{i}", f"_wm.heads.decoder._mlp.layers.Decoder_norm{i}",
              Z + D if i == 0 else U, U)  # fmt: skip
    rssm = "_wm.dynamics."
    dense(rssm + "_img_in_layers.0", rssm + "_img_in_layers.1", Z + A, H)
    dense(rssm + "_cell.layers.GRU_linear", rssm + "_cell.layers.GRU_norm", H + D, 3 * D)
    dense(rssm + "_img_out_layers.0", rssm + "_img_out_layers.1", D, H)
    dense(rssm + "_obs_out_layers.0", rssm + "_obs_out_layers.1", D + embed, H)
    for name in ("_imgs_stat_layer", "_obs_stat_layer"):
        put(f"{rssm}{name}.weight", Z, H, scale=3.0)
        put(f"{rssm}{name}.bias", Z)
    put(rssm + "W", 1, D, scale=1.0)
    decoder = "_wm.heads.decoder._cnn."
    put(decoder + "_linear_layer.weight", 16 * DEPTH * 2 ** (STAGES - 1), Z + D)
    put(decoder + "_linear_layer.bias", 16 * DEPTH * 2 ** (STAGES - 1))
    put(decoder + "layers.0.weight", DEPTH * 2, DEPTH, 4, 4)
    norm(decoder + "layers.1.norm", DEPTH)
    put(decoder + "layers.3.weight", DEPTH, 3, 4, 4)
    put(decoder + "layers.3.bias", 3)
    put("_wm.heads.decoder._mlp.mean_layer.pose.weight", 5, U)
    put("_wm.heads.decoder._mlp.mean_layer.pose.bias", 5)
    head("_wm.heads.reward", "Reward", 255)
    head("_wm.heads.cont", "Cont", 1)
    head("_task_behavior.actor", "Actor", A)
    head("_task_behavior.value", "Value", 255)
    head("_task_behavior._slow_value", "Value", 255)
    out["_task_behavior.ema_vals"] = torch.zeros(2)
    for name in [n for n in out if n.startswith("_wm.")]:
        out["_task_behavior._world_model." + name.removeprefix("_wm.")] = out[name].clone()
    for name in [n for n in out if n.startswith("_task_behavior.")]:
        out["_expl_behavior." + name.removeprefix("_task_behavior.")] = out[name].clone()
    return out


def write(path, weights=None, **more):
    parts = {"agent_state_dict": arrays() if weights is None else weights, "optims_state_dict": {}, **more}
    torch.save(parts, path)
    return path


# The forward pass by hand (facts: circuits spec 2.1 and 2.2) ---------------------------------------------------------


def layer(w, linear, norm, x):
    y = x @ w[f"{linear}.weight"].T
    return F.silu(F.layer_norm(y, y.shape[-1:], w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-3))


def mlp(w, path, name, x):
    for i in range(2):
        x = layer(w, f"{path}.layers.{name}_linear{i}", f"{path}.layers.{name}_norm{i}", x)
    return x


def by_hand(w, image, pose, actions, first, z):
    """h, posterior logits and actor log-probabilities, (B, T, ...); z (B, T, S, K) is forced on the posterior."""
    r = "_wm.dynamics."
    start_h = torch.tanh(w[r + "W"])
    prior = layer(w, r + "_img_out_layers.0", r + "_img_out_layers.1", start_h)
    logits = prior @ w[r + "_imgs_stat_layer.weight"].T + w[r + "_imgs_stat_layer.bias"]
    start_z = F.one_hot(logits.view(S, S).argmax(-1), S).float().view(1, -1)
    hs, posts, acts = [], [], []
    h = zs = a = None
    for t in range(first.shape[1]):
        x = image[:, t].float().permute(0, 3, 1, 2) / 255 - 0.5
        for i in range(STAGES):
            x = F.conv2d(x, w[f"_wm.encoder._cnn.layers.{3 * i}.weight"], stride=2, padding=1).permute(0, 2, 3, 1)
            n = f"_wm.encoder._cnn.layers.{3 * i + 1}.norm"
            x = F.silu(F.layer_norm(x, x.shape[-1:], w[f"{n}.weight"], w[f"{n}.bias"], 1e-3)).permute(0, 3, 1, 2)
        squashed = pose[:, t].sign() * pose[:, t].abs().log1p()
        embed = torch.cat([x.flatten(1), mlp(w, "_wm.encoder._mlp", "Encoder", squashed)], -1)
        new = first[:, t, None].float()
        old_h, old_z, old_a = (h, zs, a) if t else (0 * start_h, 0 * start_z, torch.zeros(len(new), A))
        old_h, old_z, old_a = new * start_h + (1 - new) * old_h, new * start_z + (1 - new) * old_z, (1 - new) * old_a
        x = layer(w, r + "_img_in_layers.0", r + "_img_in_layers.1", torch.cat([old_z, old_a], -1))
        y = torch.cat([x, old_h], -1) @ w[r + "_cell.layers.GRU_linear.weight"].T
        y = F.layer_norm(y, (3 * D,), w[r + "_cell.layers.GRU_norm.weight"], w[r + "_cell.layers.GRU_norm.bias"], 1e-3)
        reset, cand, update = y.split(D, -1)
        update = torch.sigmoid(update - 1)
        h = update * torch.tanh(torch.sigmoid(reset) * cand) + (1 - update) * old_h
        x = layer(w, r + "_obs_out_layers.0", r + "_obs_out_layers.1", torch.cat([h, embed], -1))
        posts.append(x @ w[r + "_obs_stat_layer.weight"].T + w[r + "_obs_stat_layer.bias"])
        zs, a = z[:, t].flatten(1), F.one_hot(actions[:, t], A).float()
        feat = mlp(w, "_task_behavior.actor", "Actor", torch.cat([zs, h], -1))
        raw = feat @ w["_task_behavior.actor.mean_layer.weight"].T + w["_task_behavior.actor.mean_layer.bias"]
        acts.append((0.99 * raw.softmax(-1) + 0.01 / A).log())
        hs.append(h)
    return (torch.stack(v, 1) for v in (hs, posts, acts))


@pytest.fixture
def seen():
    g = torch.Generator().manual_seed(3)
    rows, steps = 3, 50
    first = torch.zeros(rows, steps, dtype=torch.bool)
    first[:, 0] = first[1, 20] = first[2, 33] = first[2, 34] = True
    obs = {"image": torch.randint(0, 256, (rows, steps, SIDE, SIDE, 3), generator=g, dtype=torch.uint8),
           "pose": 4 * torch.randn(rows, steps, 5, generator=g)}  # fmt: skip
    actions = torch.randint(0, A, (rows, steps), generator=g)
    z = F.one_hot(torch.randint(0, S, (rows, steps, S), generator=g), S).float()
    return obs, actions, first, z


def test_the_forward_pass_is_the_same(tmp_path, seen):
    """Bar: h, posterior and actor logits within 1e-5 over 50 steps with a reset; along sequences and acting alike."""
    obs, actions, first, z = seen
    agent = load(import_latest(write(tmp_path / "latest.pt"), tmp_path / "run", SPEC))
    noise = Noise(posterior=1e6 * z)  # z is what a draw with this noise gives
    h, post, logits = by_hand(arrays(), obs["image"], obs["pose"], actions, first, z)
    with torch.no_grad():
        out = agent.unroll(obs, {"action": actions}, first, agent.initial(3), noise)
        carry, acted = agent.initial(3), []
        for t in range(50):
            now = {key: value[:, t] for key, value in obs.items()} | {"is_first": first[:, t]}
            _, carry, _ = agent.policy(now, carry, Noise(posterior=noise.posterior[:, t]))
            acted.append(carry.deter)
            carry = carry._replace(action=F.one_hot(actions[:, t], A).float())
    assert (out.states.deter - h).abs().max() <= 1e-5 and h.std() > 0.1
    assert (out.posterior_logit.flatten(2) - post).abs().max() <= 1e-5
    assert (out.policy["action"][0] - logits).abs().max() <= 1e-5
    assert (torch.stack(acted, 1) - h).abs().max() <= 1e-5
    assert torch.equal(out.states.stoch, z)
    assert out.decoded["image"].shape == (3, 50, SIDE, SIDE, 3) and out.decoded["pose"].shape == (3, 50, 5)
    assert out.value.abs().max() > 0.01  # each head reads its own arrays
    assert not torch.allclose(out.value, out.reward)


def test_surgery_works_on_it(seen):
    obs, actions, first, _ = seen
    agent = from_state_dict(_once(arrays()), SPEC)
    model = Model(agent)
    batch = {**obs, "action": actions, "is_first": first}
    assert {"memory", "core.reset", "actor.mlp", "encoder.cnn", "dynamics.posterior"} <= set(model.sites)
    plain, cache = model.run_with_cache(batch, ["memory", "core.update"], noise="mode")
    assert torch.equal(cache["memory"], plain.states.deter) and cache["core.update"].shape == (3, 50, D)
    assert not torch.equal(plain.states.deter[1, 19], plain.states.deter[1, 20])
    with model.edited([Ablate("memory", units=(0, 1), time=slice(10, None))]):
        cut = model.unroll(batch, noise="mode")
    assert torch.equal(cut.states.deter[:, :10], plain.states.deter[:, :10])
    assert (cut.states.deter[:, 10:, :2] == 0).all()
    assert not torch.equal(cut.policy["action"][0], plain.policy["action"][0])
    dreamt = model.imagine(plain.carry, 4, seed=1)
    assert dreamt.feat.shape == (3, 5, S * S + D)


def _once(weights):
    return {k: v for k, v in weights.items() if not k.startswith(("_expl", "_task_behavior._world"))}


def test_a_compiled_agent_has_other_names(tmp_path):
    plain = arrays()
    compiled = {k.replace("_wm.", "_wm._orig_mod.").replace("_task_behavior.", "_task_behavior._orig_mod."): v
                for k, v in plain.items()}  # fmt: skip
    found = read(write(tmp_path / "latest.pt", compiled))
    assert found.keys() == read(write(tmp_path / "other.pt", plain)).keys()
    assert not any("_orig_mod" in name or "_expl" in name for name in found)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda w: w.update({"_wm.attention.weight": torch.ones(2)}), r"unknown keys _wm\.attention\.weight"),
        (lambda w: w.update({"_wm.encoder._cnn.layers.0.bias_2": torch.ones(2)}), "unknown keys .*bias_2"),
        (lambda w: w.pop("_wm.dynamics._obs_stat_layer.bias"), r"dynamics\.posterior\.logit\.bias are missing"),
        (lambda w: w.pop("_wm.dynamics._imgs_stat_layer.weight"), "_imgs_stat_layer.weight is missing"),
        (lambda w: w.update({"_task_behavior.actor.mean_layer.bias": torch.ones(A + 1)}), r"mean_layer\.bias has"),
        (lambda w: w.update({"_wm.dynamics._img_in_layers.0.weight": torch.ones(H, S + A)}), "are not discrete"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change, text):
    weights = _once(arrays())
    change(weights)
    with pytest.raises(NM512Error, match=text):
        from_state_dict(weights, SPEC)


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(NM512Error, match="is missing"):
        read(tmp_path / "latest.pt")
    other = tmp_path / "other.pt"
    other.write_bytes(write(other).read_bytes()[:2000])
    with pytest.raises(NM512Error, match="not a complete file"):
        read(other)
    torch.save({"agent_state_dict": {"_wm.x": copy.copy}}, other)
    with pytest.raises(NM512Error, match="refused unread"):
        read(other)
    with pytest.raises(NM512Error, match="does not know: replay"):
        read(write(other, replay=1))
    split = arrays()
    split["_expl_behavior.value.mean_layer.bias"] += 1
    with pytest.raises(NM512Error, match=r"_expl_behavior\.value\.mean_layer\.bias should be the same"):
        read(write(other, split))
    with pytest.raises(NM512Error, match="give stoch="):
        from_state_dict(_once(arrays()), SPEC, stoch=3)


def test_command(tmp_path, capsys):
    write(tmp_path / "latest.pt")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_json()))
    words = ["import", "nm512", str(tmp_path / "latest.pt"), "--out", str(tmp_path / "run")]
    assert main([*words, "--spec", str(tmp_path / "spec.json")]) == 0
    assert "torchmem.load" in capsys.readouterr().out and load(tmp_path / "run").config.deter == D
    assert main([*words[:-1], str(tmp_path / "again")]) == 2
    assert "does not name its world" in capsys.readouterr().err
