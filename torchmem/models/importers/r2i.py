"""Parameters of the official R2I program (chandar-lab/Recall2Imagine @ 6e317e7), as arrays by path, in our layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.config import R2IConfig, R2ILossScales, SSMConfig
from torchmem.types import EnvSpec

LAYER = {"Lambda_re": "lambda_re", "Lambda_im": "lambda_im", "B": "b", "C": "c", "D": "d", "log_step": "log_step"}
STACK = {"seq": "s5", "norm": "norm", "out": "out", "out2": "gate"}  # of one layer of the stack
# official module path -> ours; a Dense keeps its kernel in `.linear` and its norm in `.norm`
DENSES = {
    r"wm\.enc\.mlp\.h(\d+)": r"encoder.mlp.\1",
    r"wm\.dec\.mlp\.h(\d+)": r"decoder.mlp.\1",
    r"wm\.rew\.h(\d+)": r"reward.mlp.\1",
    r"wm\.cont\.h(\d+)": r"cont.mlp.\1",
    r"task_behavior\.ac\.actor\.h(\d+)": r"behaviour.policy.mlp.\1",
    r"task_behavior\.critic\.net\.h(\d+)": r"behaviour.value.mlp.\1",
    r"task_behavior\.critic\.slow\.h(\d+)": r"behaviour.slow_value.mlp.\1",
    r"wm\.rssm\.img_in": r"dynamics.input",
    r"wm\.rssm\.obs_out": r"dynamics.posterior.hidden",
    r"wm\.rssm\.img_out": r"dynamics.prior.hidden",
}
PLAINS = {
    r"wm\.rssm\.obs_stats": r"dynamics.posterior.logit",
    r"wm\.rssm\.img_stats": r"dynamics.prior.logit",
    r"wm\.rssm\.out_proj": r"dynamics.output",
    r"wm\.dec\.mlp\.dist_(\w+)\.out": r"decoder.heads.\1",
    r"wm\.rew\.dist_out\.out": r"reward.out",
    r"wm\.cont\.dist_out\.out": r"cont.out",
    r"task_behavior\.ac\.actor\.dist_out\.out": r"behaviour.policy.out.{action}",
    r"task_behavior\.critic\.net\.dist_out\.out": r"behaviour.value.out",
    r"task_behavior\.critic\.slow\.dist_out\.out": r"behaviour.slow_value.out",
}
BUFFERS = {
    "task_behavior.ac.retnorm_extr.low.value": "behaviour.return_low",
    "task_behavior.ac.retnorm_extr.high.value": "behaviour.return_high",
}
SSM_PATH = "wm.rssm.mimo_ssm."


def layer_arrays(raw: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """One S5 layer: Lambda_re, Lambda_im, B (P, H, 2), C (H, P, 2), D, log_step (P, 1), or gradients of them."""
    return {LAYER[name]: _ssm(name, value) for name, value in raw.items()}


def stack_arrays(raw: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A stack: "layers_0.seq.B", "layers_0.norm.scale", "layers_0.out.kernel", ..."""
    out = {}
    for path, value in raw.items():
        match = re.fullmatch(r"layers_(\d+)\.(\w+)\.(\w+)", path)
        if match is None or match[2] not in STACK:
            raise KeyError(f"{path} is no parameter of a stack of S5 layers")
        part = match[2]
        ours = (LAYER[match[3]], _ssm(match[3], value)) if part == "seq" else _leaf(match[3], value, part == "norm")
        out[f"layers.{match[1]}.{STACK[part]}.{ours[0]}"] = ours[1]
    return out


def translate(path: str, array: np.ndarray, action: str = "action") -> tuple[str, Tensor]:
    """Official parameter path, joined by dots, and array -> our name and tensor. Raises KeyError on an unknown path.

    action: the key of the world's one action, which the original does not name.
    """
    if path in BUFFERS:
        return BUFFERS[path], torch.tensor(np.array(array))
    if path == "wm.rssm.initial_deter":
        return "dynamics.start_deter", torch.tensor(np.array(array))
    if path == "wm.rssm.initial_hidden":  # (2, N, P): re, im
        return "dynamics.start_hidden", torch.tensor(np.array(array)).movedim(0, -1).flatten(-2)
    if path.startswith(SSM_PATH):
        ((name, value),) = stack_arrays({path.removeprefix(SSM_PATH): array}).items()
        return f"dynamics.core.{name}", value
    module, _, leaf = path.rpartition(".")
    normed = module.endswith(".norm")
    for pattern, ours in DENSES.items():
        match = re.fullmatch(pattern, module.removesuffix(".norm"))
        if match:
            name, value = _leaf(leaf, array, normed)
            return f"{match.expand(ours)}.{'norm' if normed else 'linear'}.{name}", value
    for pattern, ours in PLAINS.items():
        match = re.fullmatch(pattern, module)
        if match:
            name, value = _leaf(leaf, array, norm=False)
            return f"{match.expand(ours).format(action=action)}.{name}", value
    raise KeyError(f"parameter {path!r} is not one of Recall2Imagine @ 6e317e7 that this importer knows")


def config_from_official(config: Mapping[str, Any]) -> R2IConfig:
    """An official configuration, nested or with dotted names, as an R2IConfig; refuses what we do not implement."""
    o = _dotted(config)
    fixed = {
        "rssm.act": "silu", "rssm.norm": "layer", "rssm.action_clip": 1.0, "rssm.nonrecurrent_enc": True,
        "ssm.dropout": 0.0, "ssm.conv": False, "ssm_cell.reset_mode": "init", "encoder.symlog_inputs": True,
        "encoder.cnn_blocks": 0, "decoder.cnn_sigmoid": False, "decoder.image_dist": "mse",
        "decoder.vector_dist": "symlog_mse", "reward_head.dist": "symlog_disc", "critic.dist": "symlog_disc",
        "cont_head.dist": "binary", "dyn_loss.impl": "kl", "rep_loss.impl": "kl", "retnorm.impl": "perc_ema",
        "critic_slowreg": "logprob", "critic.inputs": o["actor.inputs"], "dyn_loss.free": o["rep_loss.free"],
        "loss_scales.image": o["loss_scales.vector"], "decoder.mlp_units": o["encoder.mlp_units"],
        "decoder.mlp_layers": o["encoder.mlp_layers"], "cont_head.units": o["actor.units"],
        "reward_head.units": o["actor.units"], "critic.units": o["actor.units"], "critic.bins": o["reward_head.bins"],
    }  # fmt: skip
    for key, needed in fixed.items():
        if key in o and o[key] != needed:
            raise ValueError(f"official setting {key}={o[key]!r} is not supported; this importer needs {needed!r}")
    reads: dict[tuple[str, ...], Any] = {
        ("deter", "stoch"): "output",
        ("stoch", "hidden"): "hidden",
        ("deter", "stoch", "hidden"): "full",
    }
    inputs = tuple(o["actor.inputs"])
    if inputs not in reads:
        raise ValueError(f"official setting actor.inputs={list(inputs)} is not supported; choose {list(reads)}")
    ssm = SSMConfig(
        layers=o["ssm.n_layers"],
        states=o["rssm.hidden"],
        blocks=o["ssm_cell.n_blocks"],
        discretisation=o["ssm_cell.discretization"],
        conj_sym=o["ssm_cell.conj_sym"],
        clip_eigs=o["ssm_cell.clip_eigs"],
        c_init=o["ssm_cell.C_init"],
        dt_min=o["ssm_cell.dt_min"],
        dt_max=o["ssm_cell.dt_max"],
        prenorm=o["ssm.prenorm"],
        norm=o["ssm.use_norm"],
        mlp=o["ssm.mlp"],
        glu=o["ssm.glu"],
    )
    scales = {
        "rec": "vector", "rew": "reward", "con": "cont", "dyn": "dyn", "rep": "rep", "policy": "actor",
        "value": "critic",
    }  # fmt: skip
    optimisers = {
        "lr": "model_opt.lr", "clip": "model_opt.clip", "eps": "model_opt.eps", "weight_decay": "model_opt.wd",
        "ssm_lr": "model_opt_groups.group1.lr", "actor_lr": "actor_opt.lr",
        "critic_lr": "critic_opt.lr", "actor_clip": "actor_opt.clip", "critic_clip": "critic_opt.clip",
        "behaviour_eps": "actor_opt.eps",
    }  # fmt: skip
    given: dict[str, Any] = {ours: float(o[theirs]) for ours, theirs in optimisers.items() if theirs in o}
    return R2IConfig(
        deter=o["rssm.deter"],
        units=o["rssm.units"],
        ssm=ssm,
        stoch=o["rssm.stoch"],
        classes=o["rssm.classes"],
        depth=o["encoder.cnn_depth"],
        vector_units=o["encoder.mlp_units"],
        head_units=o["actor.units"],
        policy_input=reads[inputs],
        start=o["rssm.initial"],
        vector_layers=o["encoder.mlp_layers"],
        reward_layers=o["reward_head.layers"],
        cont_layers=o["cont_head.layers"],
        policy_layers=o["actor.layers"],
        value_layers=o["critic.layers"],
        bins=o["critic.bins"],
        unimix=o["rssm.unimix"],
        policy_unimix=o["actor.unimix"],
        min_std=o["actor.minstd"],
        max_std=o["actor.maxstd"],
        policy_outscale=o["actor.outscale"],
        scales=R2ILossScales(**{ours: o[f"loss_scales.{theirs}"] for ours, theirs in scales.items()}),
        free_nats=o["dyn_loss.free"],
        horizon=o["horizon"],
        imag_length=o["imag_horizon"],
        lam=o["return_lambda"],
        entropy=o["actent"],
        slow_reg=o["loss_scales.slowreg"],
        slow_rate=o.get("slow_critic_fraction", 0.02),
        return_rate=1 - o["retnorm.decay"],
        return_limit=1 / o["retnorm.max"],
        return_low=o["retnorm.perclo"],
        return_high=o["retnorm.perchi"],
        **given,
        warmup=int(o.get("model_opt.warmup", 0)),
    )


def from_arrays(params: Mapping[str, np.ndarray], config: Mapping[str, Any], spec: EnvSpec) -> R2IAgent:
    """An agent with the weights, slow critic and return range of an official one.

    params: arrays by official path, joined by dots, without those of the optimisers. config: the official
    configuration, nested or with dotted names. spec: the one observation key and the one action it was trained on.
    Raises KeyError or ValueError naming any array or setting that is unknown, missing or of the wrong shape.
    """
    if len(spec.action) != 1:
        raise ValueError(f"an official agent has one action, the spec has {list(spec.action)}")
    agent = R2IAgent(spec, config_from_official(config))
    own = agent.state_dict()
    missing = set(own)
    for path, array in params.items():
        name, value = translate(path, array, next(iter(spec.action)))
        if name not in own:
            raise KeyError(f"official parameter {path!r} has no place here (would be {name!r}): other keys?")
        if own[name].shape != value.shape:
            shapes = f"is {tuple(value.shape)}, but {name!r} is {tuple(own[name].shape)}"
            raise ValueError(f"official parameter {path!r} {shapes}")
        own[name].copy_(value)
        missing.discard(name)
    if missing:
        raise KeyError(f"the official arrays lack {sorted(missing)}")
    return agent


def _dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in config.items():
        out |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _ssm(name: str, value: np.ndarray) -> Tensor:
    tensor = torch.tensor(np.asarray(value), dtype=torch.float32)
    if name == "B":
        return tensor.movedim(-1, 1).flatten(0, 1).contiguous()
    if name == "C":
        return (tensor * torch.tensor([1.0, -1.0])).flatten(1)  # Re(C x) = C_re x_re - C_im x_im
    return tensor.flatten()


def _leaf(name: str, value: np.ndarray, norm: bool) -> tuple[str, Tensor]:
    """A linear layer's kernel (in, out) or bias, or a norm's scale or bias."""
    tensor = torch.tensor(np.asarray(value), dtype=torch.float32)
    if name == "kernel":
        return "weight", tensor.mT.contiguous()
    return ("shift" if norm and name == "bias" else name), tensor
