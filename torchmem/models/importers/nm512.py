"""Read `latest.pt` of NM512/dreamerv3-torch into agent=gru_dreamer, which computes the same forward pass.

    agent_state_dict    weights by module path; torch.compile's "_orig_mod." is dropped, second copies of shared modules
                        (_task_behavior._world_model.*, _expl_behavior.*) must equal the first and are dropped
    optims_state_dict   left behind

The file is read with weights_only, so that its pickle can name tensors and containers only. It holds no configuration:
sizes come from the arrays, and what they cannot tell is an argument (how S x K splits, the uniform shares). Taken for
granted: discrete latents, SiLU, LayerNorm, rec_depth 1, symlog bins for reward and value, actor "onehot" or "normal".
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.models.checkpoint import file_hash, save_agent
from torchmem.models.gru_dreamer.agent import GRUDreamerAgent
from torchmem.models.gru_dreamer.config import GRUDreamerConfig
from torchmem.models.importers.dreamerv3_spec import read_spec
from torchmem.models.importers.torch_file import read_torch_file
from torchmem.types import EnvSpec

log = logging.getLogger("torchmem")

PARTS = {"agent_state_dict", "optims_state_dict"}
COPIES = {"_task_behavior._world_model.": "_wm.", "_expl_behavior._world_model.": "_wm.",
          "_expl_behavior.": "_task_behavior."}  # fmt: skip
FORGOTTEN = {"_task_behavior.ema_vals"}  # of training: the running range of returns
# their path -> ours; {i} counts layers, {k} names an observation
RULES = {
    r"_wm\.dynamics\.W": "dynamics.start",
    r"_wm\.dynamics\._img_in_layers\.0": "dynamics.core.input.linear",
    r"_wm\.dynamics\._img_in_layers\.1": "dynamics.core.input.norm",
    r"_wm\.dynamics\._cell\.layers\.GRU_(linear|norm)": r"dynamics.core.\1",
    r"_wm\.dynamics\._img_out_layers\.0": "dynamics.prior.layer.linear",
    r"_wm\.dynamics\._img_out_layers\.1": "dynamics.prior.layer.norm",
    r"_wm\.dynamics\._imgs_stat_layer": "dynamics.prior.logit",
    r"_wm\.dynamics\._obs_out_layers\.0": "dynamics.posterior.layer.linear",
    r"_wm\.dynamics\._obs_out_layers\.1": "dynamics.posterior.layer.norm",
    r"_wm\.dynamics\._obs_stat_layer": "dynamics.posterior.logit",
    r"_wm\.encoder\._mlp\.layers\.Encoder_(linear|norm)(\d+)": r"encoder.mlp.\2.\1",
    r"_wm\.heads\.decoder\._cnn\._linear_layer": "decoder.cnn.linear",
    r"_wm\.heads\.decoder\._mlp\.layers\.Decoder_(linear|norm)(\d+)": r"decoder.mlp.\2.\1",
    r"_wm\.heads\.decoder\._mlp\.mean_layer\.(\w+)": r"decoder.heads.\1",
    r"_wm\.heads\.reward\.layers\.Reward_(linear|norm)(\d+)": r"reward.mlp.\2.\1",
    r"_wm\.heads\.reward\.mean_layer": "reward.out",
    r"_wm\.heads\.cont\.layers\.Cont_(linear|norm)(\d+)": r"cont.0.\2.\1",
    r"_wm\.heads\.cont\.mean_layer": "cont.1",
    r"_task_behavior\.actor\.layers\.Actor_(linear|norm)(\d+)": r"actor.mlp.\2.\1",
    r"_task_behavior\.value\.layers\.Value_(linear|norm)(\d+)": r"critic.mlp.\2.\1",
    r"_task_behavior\.value\.mean_layer": "critic.out",
    r"_task_behavior\._slow_value\.layers\.Value_(linear|norm)(\d+)": r"slow_critic.mlp.\2.\1",
    r"_task_behavior\._slow_value\.mean_layer": "slow_critic.out",
}
ACTOR = {"mean_layer": "mean", "std_layer": "std"}


class NM512Error(TorchmemError):
    """A file is no checkpoint of NM512/dreamerv3-torch that this importer reads; names the file, key or setting."""


def import_latest(file: str | Path, out: str | Path, spec: EnvSpec | str | Path, **given: Any) -> Path:
    """Write `out` as a run directory that `torchmem.load` reads. Returns `out`.

    spec: the world, or a JSON file that describes it. given: see `from_state_dict`. Raises FileExistsError where `out`
    holds something, NM512Error and SpecError.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists: name a new folder for the imported agent")
    weights = read(file)
    spec = spec if isinstance(spec, EnvSpec) else read_spec(spec)
    try:
        agent = from_state_dict(weights, spec, **given)
    except NM512Error as error:
        raise NM512Error(f"{file}: {error}") from error
    save_agent(agent, out / "ckpt" / "imported" / "agent")  # type: ignore[arg-type]  (it has no loss)
    source = {"program": "NM512/dreamerv3-torch", "file": file.name, "file_sha256": file_hash(file),
              "env_spec": spec.name}  # fmt: skip
    atomic_write(out / "imported.json", json.dumps(source, indent=1) + "\n")
    atomic_write(out / "ckpt" / "latest", "imported\n")
    log.info("imported %s: %d weights for env %s", file, sum(p.numel() for p in agent.parameters()), spec.name)
    return out


def read(file: Path) -> dict[str, Tensor]:
    """The arrays of a latest.pt by their path, once each. Nothing of it is run. Raises NM512Error."""
    found = read_torch_file(file, NM512Error)
    if not isinstance(found, Mapping) or "agent_state_dict" not in found:
        raise NM512Error(f"{file} has no agent_state_dict: it is no latest.pt of NM512/dreamerv3-torch")
    if unknown := sorted(set(found) - PARTS):
        raise NM512Error(f"{file} has parts that this importer does not know: {', '.join(map(str, unknown[:5]))}")
    weights = {str(k).replace("_orig_mod.", ""): v for k, v in found["agent_state_dict"].items()}
    strange = [k for k, v in weights.items() if not (isinstance(v, Tensor) and v.is_floating_point())]
    if strange:
        raise NM512Error(f"{file}: entries {strange[:5]} are not arrays of numbers")
    return _once(weights, file)


def _once(weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Without the second copies of shared modules, which must be the same."""
    kept = dict(weights)
    for name, value in weights.items():
        for copied, original in COPIES.items():
            first = original + name.removeprefix(copied)
            if name.startswith(copied) and first in weights:
                if not torch.equal(value, weights[first]):
                    raise NM512Error(f"{file}: {name} should be the same as {first}, but is not")
                del kept[name]
                break
    return kept


def from_state_dict(
    weights: Mapping[str, Tensor],
    spec: EnvSpec,
    *,
    stoch: int | None = None,
    unimix: float = 0.01,
    actor_unimix: float = 0.01,
    sigmoid_image: bool = False,
) -> GRUDreamerAgent:
    """An agent with these arrays.

    stoch: number of categorical variables; None: as many as each has classes (32 x 32 by default there). unimix,
    actor_unimix, sigmoid_image: its settings unimix_ratio, actor.unimix_ratio, decoder.cnn_sigmoid. Raises NM512Error
    naming each key that is unknown or missing, or the array or setting that does not fit.
    """
    if len(spec.action) != 1:
        raise NM512Error(f"it acts with one vector; the world {spec.name} has the keys {', '.join(spec.action)}")
    ((action, space),) = spec.action.items()
    table, unknown = {}, []
    for theirs in weights:
        ours = _ours(theirs, action, space.discrete)
        if ours is not None:
            table[theirs] = ours
        elif theirs not in FORGOTTEN:
            unknown.append(theirs)
    if unknown:
        raise NM512Error(f"unknown keys {', '.join(sorted(unknown)[:5])}" + (", ..." if len(unknown) > 5 else ""))
    config = _config(weights, spec, space.one_hot_size, stoch)
    config.unimix, config.actor_unimix, config.sigmoid_image = unimix, actor_unimix, sigmoid_image
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten at once
        try:
            agent = GRUDreamerAgent(spec, config)
        except ValueError as error:
            raise NM512Error(str(error)) from error
    own = agent.state_dict()
    if missing := sorted(own.keys() - table.values()):
        raise NM512Error(f"arrays for {', '.join(missing[:5])} are missing")
    with torch.no_grad():
        for theirs, ours in table.items():
            if ours not in own or own[ours].shape != weights[theirs].shape:
                wanted = tuple(own[ours].shape) if ours in own else "none"
                raise NM512Error(f"{theirs} has shape {tuple(weights[theirs].shape)}; for the world {spec.name} it "
                                 f"should be {wanted}")  # fmt: skip
            own[ours].copy_(weights[theirs])
    return agent


def _ours(theirs: str, action: str, discrete: bool) -> str | None:
    """Their key as our parameter; None for an unknown one."""
    path, _, leaf = theirs.rpartition(".")
    if theirs == "_wm.dynamics.W":
        return RULES[r"_wm\.dynamics\.W"]
    if leaf not in ("weight", "bias"):
        return None
    if match := re.fullmatch(r"_wm\.encoder\._cnn\.layers\.(\d+)(\.norm)?", path):
        stage, part = divmod(int(match[1]), 3)  # convolution, norm, activation
        return _stage("encoder.cnn", stage, part, match[2], leaf)
    if match := re.fullmatch(r"_wm\.heads\.decoder\._cnn\.layers\.(\d+)(\.norm)?", path):
        stage, part = divmod(int(match[1]), 3)
        return _stage("decoder.cnn.stages", stage, part, match[2], leaf)
    if match := re.fullmatch(r"_task_behavior\.actor\.(mean_layer|std_layer)", path):
        return f"actor.out.{action}" + (f".{leaf}" if discrete else f".{ACTOR[match[1]]}.{leaf}") if (
            match[1] == "mean_layer" or not discrete) else None  # fmt: skip
    for pattern, ours in RULES.items():
        if match := re.fullmatch(pattern, path):
            return f"{match.expand(ours)}.{leaf}"
    return None


def _stage(home: str, stage: int, part: int, norm: str | None, leaf: str) -> str | None:
    kinds = {(0, None): "conv", (1, ".norm"): "norm"}
    return f"{home}.{stage}.{kinds[part, norm]}.{leaf}" if (part, norm) in kinds else None


def _config(weights: Mapping[str, Tensor], spec: EnvSpec, actions: int, stoch: int | None) -> GRUDreamerConfig:
    """Sizes, read off the arrays."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise NM512Error(f"{name} is missing")
        return tuple(weights[name].shape)

    def layers(pattern: str) -> int:
        return sum(re.fullmatch(pattern + r"\d+\.weight", k) is not None for k in weights)

    latent = shape("_wm.dynamics._imgs_stat_layer.weight")[0]
    hidden, width = shape("_wm.dynamics._img_in_layers.0.weight")
    if width - actions != latent:
        raise NM512Error(f"its recurrence takes {width} numbers, not the {latent} of its latent state and {actions} of "
                         f"the world's action: latents are not discrete, or the world is another")  # fmt: skip
    stoch = stoch or math.isqrt(latent)
    if latent % stoch or (stoch * stoch != latent and latent // stoch < 2):
        raise NM512Error(f"a latent state of {latent} numbers does not split into {stoch} variables: give stoch=")
    found: dict[str, Any] = {
        "deter": shape("_wm.dynamics._cell.layers.GRU_linear.weight")[0] // 3, "hidden": hidden, "stoch": stoch,
        "classes": latent // stoch, "units": shape("_wm.heads.reward.layers.Reward_linear0.weight")[0],
        "actor_layers": layers(r"_task_behavior\.actor\.layers\.Actor_linear"),
        "critic_layers": layers(r"_task_behavior\.value\.layers\.Value_linear"),
        "reward_layers": layers(r"_wm\.heads\.reward\.layers\.Reward_linear"),
        "cont_layers": layers(r"_wm\.heads\.cont\.layers\.Cont_linear"),
        "bins": shape("_wm.heads.reward.mean_layer.weight")[0], "learned_start": "_wm.dynamics.W" in weights,
        "decode_image": "_wm.heads.decoder._cnn._linear_layer.weight" in weights,
        "decode_vector": any(k.startswith("_wm.heads.decoder._mlp.") for k in weights),
    }  # fmt: skip
    if found["bins"] < 3:
        raise NM512Error("its reward head has no bins (reward_head.dist is not symlog_disc)")
    if (first := "_wm.encoder._cnn.layers.0.weight") in weights:
        depth, _, kernel, _ = shape(first)
        stages = sum(v.dim() == 4 for k, v in weights.items() if k.startswith("_wm.encoder._cnn."))
        sides = [s.shape[0] for s in spec.obs.values() if s.image]
        if not sides:
            raise NM512Error(f"it sees an image, the world {spec.name} shows none")
        found |= {"depth": depth, "kernel": kernel, "minres": sides[0] >> stages}
    if (first := "_wm.encoder._mlp.layers.Encoder_linear0.weight") in weights:
        count = layers(r"_wm\.encoder\._mlp\.layers\.Encoder_linear")
        found |= {"vector_units": shape(first)[0], "vector_layers": count}
    return GRUDreamerConfig(**found)
