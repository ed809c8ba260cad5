"""Read agents of the official JAX program (danijar/dreamerv3 @ e3f0224) from their numpy arrays and config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig, LossScales
from torchmem.types import EnvSpec

# official path -> our module path; the leaf (kernel, bias, scale) is translated by `_leaf`
RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"enc/cnn(\d+)", r"encoder.cnn.\1.conv"),
    (r"enc/cnn(\d+)norm", r"encoder.cnn.\1.norm"),
    (r"enc/mlp(\d+)", r"encoder.mlp.\1.linear"),
    (r"enc/mlp(\d+)norm", r"encoder.mlp.\1.norm"),
    (r"dyn/dynin0", r"dynamics.core.deter_in.linear"),
    (r"dyn/dynin0norm", r"dynamics.core.deter_in.norm"),
    (r"dyn/dynin1", r"dynamics.core.stoch_in.linear"),
    (r"dyn/dynin1norm", r"dynamics.core.stoch_in.norm"),
    (r"dyn/dynin2", r"dynamics.core.action_in.linear"),
    (r"dyn/dynin2norm", r"dynamics.core.action_in.norm"),
    (r"dyn/dynhid(\d+)", r"dynamics.core.hidden.\1"),
    (r"dyn/dynhid(\d+)norm", r"dynamics.core.hidden_norm.\1"),
    (r"dyn/dyngru", r"dynamics.core.gates"),
    (r"dyn/obs0", r"dynamics.posterior.linear"),
    (r"dyn/obs0norm", r"dynamics.posterior.norm"),
    (r"dyn/obs(\d+)", lambda m: f"dynamics.posterior.layers.{int(m[1]) - 1}.linear"),
    (r"dyn/obs(\d+)norm", lambda m: f"dynamics.posterior.layers.{int(m[1]) - 1}.norm"),
    (r"dyn/obslogit", r"dynamics.posterior.logit"),
    (r"dyn/prior(\d+)", r"dynamics.prior.layers.\1.linear"),
    (r"dyn/prior(\d+)norm", r"dynamics.prior.layers.\1.norm"),
    (r"dyn/priorlogit", r"dynamics.prior.logit"),
    (r"dec/mlp/linear(\d+)", r"decoder.mlp.\1.linear"),
    (r"dec/mlp/norm(\d+)", r"decoder.mlp.\1.norm"),
    (r"dec/vec/([^/]+)/(?:pred|logits)", r"decoder.heads.\1"),
    (r"dec/sp0", r"decoder.cnn.from_deter"),
    (r"dec/sp1", r"decoder.cnn.from_stoch.0.linear"),
    (r"dec/sp1norm", r"decoder.cnn.from_stoch.0.norm"),
    (r"dec/sp2", r"decoder.cnn.from_stoch.1"),
    (r"dec/spnorm", r"decoder.cnn.norm"),
    (r"dec/conv(\d+)", r"decoder.cnn.stages.-\1.conv"),
    (r"dec/conv(\d+)norm", r"decoder.cnn.stages.-\1.norm"),
    (r"dec/imgout", r"decoder.cnn.out"),
    (r"(rew|con|pol|val|slowval)/mlp/linear(\d+)", r"\1.mlp.\2.linear"),
    (r"(rew|con|pol|val|slowval)/mlp/norm(\d+)", r"\1.mlp.\2.norm"),
    (r"(rew|val|slowval)/head/logits", r"\1.out"),
    (r"con/head/logit", r"con.out"),
    (r"pol/head/([^/]+)/logits", r"pol.out.\1"),
    (r"pol/head/([^/]+)/mean", r"pol.out.\1.mean"),
    (r"pol/head/([^/]+)/stddev", r"pol.out.\1.std"),
]
HEADS = {
    "rew": "reward",
    "con": "cont",
    "pol": "behaviour.policy",
    "val": "behaviour.value",
    "slowval": "behaviour.slow_value",
}
BUFFERS = {"retnorm/lo/value": "behaviour.return_low", "retnorm/hi/value": "behaviour.return_high"}
BOOKKEEPING = re.compile(r"opt/.*|slowval_count/value")  # of the optimiser; not part of the network


def translate(path: str, array: np.ndarray, stages: int = 4) -> tuple[str, Tensor]:
    """Official parameter path and array -> our parameter name and tensor. Raises KeyError on an unknown path."""
    if path in BUFFERS:
        return BUFFERS[path], torch.tensor(np.array(array))
    module, _, leaf = path.rpartition("/")
    for pattern, replacement in RULES:
        match = re.fullmatch(pattern, module)
        if match:
            name = replacement(match) if callable(replacement) else match.expand(replacement)
            break
    else:
        raise KeyError(f"parameter {path!r} is not one of danijar/dreamerv3 @ e3f0224 that this importer knows")
    name = re.sub(r"stages\.-(\d+)", lambda m: f"stages.{stages - 2 - int(m[1])}", name)  # conv2 is the first stage
    head, dot, rest = name.partition(".")
    name = HEADS.get(head, head) + dot + rest
    value = torch.tensor(np.array(array))
    if leaf == "kernel":
        if value.dim() == 4:
            value = value.permute(3, 2, 0, 1)  # HWIO -> OIHW
        elif ".hidden." in name or name.endswith((".gates", ".from_deter")):
            value = value.transpose(1, 2)  # (blocks, in, out) -> (blocks, out, in)
        else:
            value = value.flatten(1).t()  # an output shape tuple is flattened row-major
    elif leaf == "bias":
        value = value.flatten()
    elif leaf != "scale":
        raise KeyError(f"parameter {path!r}: leaf {leaf!r} is not kernel, bias or scale")
    return f"{name}.{'weight' if leaf == 'kernel' else leaf}", value.contiguous()


def config_from_official(agent: Mapping[str, Any]) -> DreamerConfig:
    """The `agent` section of an official config.yaml as a DreamerConfig; refuses settings that we do not implement."""
    rssm, enc, dec = agent["dyn"]["rssm"], agent["enc"]["simple"], agent["dec"]["simple"]
    rew, con, pol, val, opt = (agent[k] for k in ("rewhead", "conhead", "policy", "value", "opt"))
    fixed = {
        "dyn.typ": (agent["dyn"]["typ"], "rssm"),
        "enc.typ": (agent["enc"]["typ"], "simple"),
        "dec.typ": (agent["dec"]["typ"], "simple"),
        "enc.simple.strided": (enc["strided"], False),
        "dec.simple.strided": (dec["strided"], False),
        "enc.simple.outer": (enc["outer"], False),
        "dec.simple.outer": (dec["outer"], False),
        "enc.simple.symlog": (enc.get("symlog", True), True),
        "ac_grads": (agent["ac_grads"], False),
        "imag_last": (agent["imag_last"], 0),
        "policy_dist_disc": (agent["policy_dist_disc"], "categorical"),
        "policy_dist_cont": (agent["policy_dist_cont"], "bounded_normal"),
        "retnorm.impl": (agent["retnorm"]["impl"], "perc"),
        "retnorm.debias": (agent["retnorm"]["debias"], False),
        "valnorm.impl": (agent["valnorm"]["impl"], "none"),
        "advnorm.impl": (agent["advnorm"]["impl"], "none"),
        "imag_loss.slowtar": (agent["imag_loss"]["slowtar"], False),
        "repl_loss.slowtar": (agent["repl_loss"]["slowtar"], False),
        "slowvalue.every": (agent["slowvalue"]["every"], 1),
        "repval_loss": (agent["repval_loss"], True),
        "rewhead.output": (rew["output"], "symexp_twohot"),
        "value.output": (val["output"], "symexp_twohot"),
        "conhead.output": (con["output"], "binary"),
        "dec.simple.mults": (list(dec["mults"]), list(enc["mults"])),
        "dec.simple.depth": (dec["depth"], enc["depth"]),
        "dec.simple.layers": (dec["layers"], enc["layers"]),
        "dec.simple.kernel": (dec["kernel"], enc["kernel"]),
        "value.bins": (val["bins"], rew["bins"]),
        "repl_loss.slowreg": (agent["repl_loss"]["slowreg"], agent["imag_loss"]["slowreg"]),
        **{f"{n}.units": (s["units"], enc["units"]) for n, s in _parts(agent).items()},
        **{f"{n}.act": (s["act"], "silu") for n, s in {"dyn.rssm": rssm, "enc.simple": enc, **_parts(agent)}.items()},
        **{f"{n}.norm": (s["norm"], "rms") for n, s in {"dyn.rssm": rssm, "enc.simple": enc, **_parts(agent)}.items()},
    }
    for key, (found, needed) in fixed.items():
        if found != needed:
            raise ValueError(f"official setting agent.{key}={found!r} is not supported; this importer needs {needed!r}")
    return DreamerConfig(
        deter=rssm["deter"],
        hidden=rssm["hidden"],
        classes=rssm["classes"],
        stoch=rssm["stoch"],
        blocks=rssm["blocks"],
        depth=enc["depth"],
        units=enc["units"],
        mults=list(enc["mults"]),
        kernel=enc["kernel"],
        vector_layers=enc["layers"],
        dyn_layers=rssm["dynlayers"],
        obs_layers=rssm["obslayers"],
        prior_layers=rssm["imglayers"],
        reward_layers=rew["layers"],
        cont_layers=con["layers"],
        policy_layers=pol["layers"],
        value_layers=val["layers"],
        decoder_blocks=dec["bspace"],
        bins=rew["bins"],
        unimix=rssm["unimix"],
        absolute=rssm["absolute"],
        min_std=pol["minstd"],
        max_std=pol["maxstd"],
        policy_outscale=pol["outscale"],
        scales=LossScales(**agent["loss_scales"]),
        free_nats=rssm["free_nats"],
        horizon=agent["horizon"],
        contdisc=agent["contdisc"],
        imag_length=agent["imag_length"],
        lam=agent["imag_loss"]["lam"],
        replay_lam=agent["repl_loss"]["lam"],
        entropy=agent["imag_loss"]["actent"],
        slow_reg=agent["imag_loss"]["slowreg"],
        slow_rate=agent["slowvalue"]["rate"],
        reward_grad=agent["reward_grad"],
        repval_grad=agent["repval_grad"],
        return_rate=agent["retnorm"]["rate"],
        return_limit=agent["retnorm"]["limit"],
        return_low=agent["retnorm"]["perclo"],
        return_high=agent["retnorm"]["perchi"],
        lr=opt["lr"],
        warmup=opt["warmup"],
        schedule=opt["schedule"],
        anneal=opt["anneal"],
        agc=opt["agc"],
        beta1=opt["beta1"],
        beta2=opt["beta2"],
        eps=float(opt["eps"]),
        weight_decay=opt["wd"],
    )


def _parts(agent: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    names = ("rewhead", "conhead", "policy", "value")
    return {"dec.simple": agent["dec"]["simple"], **{name: agent[name] for name in names}}


def from_arrays(params: Mapping[str, np.ndarray], config: Mapping[str, Any], spec: EnvSpec) -> DreamerAgent:
    """An agent with the weights, slow critic and return range of an official one.

    params: the official state by path, optimiser entries allowed and skipped. config: the official config, or its
    `agent` section. spec: the observation and action keys it was trained on. Raises KeyError or ValueError naming any
    array or setting that is unknown, missing or of the wrong shape.
    """
    agent = DreamerAgent(spec, config_from_official(config.get("agent", config)))
    own = agent.state_dict()
    missing = set(own)
    for path, array in params.items():
        if BOOKKEEPING.fullmatch(path):
            continue
        name, value = translate(path, array, stages=len(agent.config.mults))
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
