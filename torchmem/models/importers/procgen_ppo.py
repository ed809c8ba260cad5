"""Read model_<steps>.pth of the train-procgen-pytorch family (recurrent IMPALA agents on Procgen) into agent=ppo.

The file is {"model_state_dict": ..., "optimizer_state_dict": ...}. The fork behind "interpreting RL behaviour" has
`init_hx`, a learned start state, and a 64-unit embedding; its parent has neither. Both are read: sizes come from the
arrays. Adam's state is not: what is imported is the agent.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.models.checkpoint import file_hash, save_agent
from torchmem.models.importers.dreamerv3_spec import read_spec
from torchmem.models.importers.torch_file import read_torch_file
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.types import EnvSpec

log = logging.getLogger("torchmem")

# What the "hard-rec" agents were trained with (spec simulator.md, table 1.3): for going on, no file holds it.
TRAINED_WITH: dict[str, Any] = {
    "gamma": 0.999, "lam": 0.95, "clip": 0.2, "value_clip": 0.2, "value_scale": 0.5, "entropy": 0.01,
    "normalise_advantage": True, "scale_reward": True, "reward_limit": 10.0,
    "lr": 5e-4, "schedule": "linear", "eps": 1e-5, "clip_norm": 0.5,
}  # fmt: skip


class ProcgenCheckpointError(TorchmemError):
    """A file is not a checkpoint of this family, or not a whole one; the message names the file or the key."""


def names(blocks: int, start: bool, action: str) -> dict[str, str]:
    """Their key -> our parameter, of an agent with so many IMPALA blocks and one action key."""
    ours = {}
    for i in range(blocks):
        ours[f"embedder.block{i + 1}.conv"] = f"encoder.cnn.stages.{i}.conv"
        for res in ("res1", "res2"):
            for conv in ("conv1", "conv2"):
                ours[f"embedder.block{i + 1}.{res}.{conv}"] = f"encoder.cnn.stages.{i}.{res}.{conv}"
    ours |= {"embedder.fc": "encoder.cnn.out", "fc_policy": f"actor.out.{action}", "fc_value": "critic.out"}
    ours = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in ours.items() for leaf in ("weight", "bias")}
    ours |= {f"gru.gru.{name}_l0": f"core.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return ours | ({"init_hx": "core.start"} if start else {})


def from_state_dict(state: Mapping[str, Tensor], spec: EnvSpec, *, legacy_reset: bool = True) -> PPOAgent:
    """An agent with the weights of a `model_state_dict`.

    spec: the world; one image key and one discrete action key, as large as the weights have them. legacy_reset: empty
    memory as these agents always had it, with zeros (torchmem/models/ppo/legacy.py); False: with `init_hx`, as it was
    meant, which no such agent has been trained with. Raises ProcgenCheckpointError naming each key that is unknown or
    missing, or the array that does not fit.
    """
    (action,) = _only(spec.action, "action", [k for k, s in spec.action.items() if s.discrete])
    _only(spec.obs, "image", [k for k, s in spec.obs.items() if s.image])
    blocks = {int(m[1]) for m in (re.match(r"embedder\.block(\d+)\.", key) for key in state) if m}
    table = names(max(blocks, default=3), "init_hx" in state, action)
    _same_keys(state, table)
    convs = [state[f"embedder.block{i + 1}.conv.weight"] for i in range(max(blocks))]
    config = PPOConfig(
        core="gru",
        units=state["gru.gru.weight_hh_l0"].shape[-1],
        image_channels=[len(weight) for weight in convs],
        image_units=len(state["embedder.fc.weight"]),
        see_action=False,
        head_layers=0,
        learned_start="init_hx" in state,
        legacy_reset=legacy_reset,
        **TRAINED_WITH,
    )
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten at once
        agent = PPOAgent(spec, config)
    own = agent.state_dict()
    for theirs, ours in table.items():
        if own[ours].shape != state[theirs].shape:
            raise ProcgenCheckpointError(
                f"{theirs!r} is {tuple(state[theirs].shape)}, but {ours!r} is {tuple(own[ours].shape)} for the world "
                f"{spec.name} with {_sizes(spec)}: was the agent trained on another one?"
            )
        own[ours].copy_(state[theirs])
    return agent


def import_checkpoint(
    file: str | Path, out: str | Path, spec: EnvSpec | str | Path, *, legacy_reset: bool = True
) -> Path:
    """Write `out` as a run directory that `torchmem.load` reads, from one model_<steps>.pth. Returns `out`.

    spec: the world, or a JSON file that describes it. The pickle inside can name tensors and containers only
    (torch.load with weights_only). Raises FileExistsError where `out` holds something, ProcgenCheckpointError, and
    SpecError.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists: name a new folder for the imported agent")
    content = read(file)
    if not isinstance(spec, EnvSpec):
        spec = read_spec(spec)
    try:
        agent = from_state_dict(content["model_state_dict"], spec, legacy_reset=legacy_reset)
    except ProcgenCheckpointError as error:
        raise ProcgenCheckpointError(f"{file}: {error}") from error
    steps = re.fullmatch(r"model_(\d+)", file.stem)
    name = f"{int(steps[1]):012d}" if steps else "imported"
    save_agent(agent, out / "ckpt" / name / "agent")
    source = {
        "program": "train-procgen-pytorch",
        "file": file.name,
        "file_sha256": file_hash(file),
        "agent_steps": int(steps[1]) if steps else None,
        "legacy_reset": legacy_reset,
        "not_read": sorted(set(map(str, content)) - {"model_state_dict"}),
    }
    atomic_write(out / "imported.json", json.dumps(source, indent=1) + "\n")
    atomic_write(out / "ckpt" / "latest", name + "\n")
    log.info("imported %s: %d weights, legacy_reset=%s", file, sum(p.numel() for p in agent.parameters()), legacy_reset)
    return out


def read(file: Path) -> dict[str, Any]:
    """The content of a checkpoint, its model_state_dict checked to be float arrays by name."""
    content = read_torch_file(file, ProcgenCheckpointError)
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, Mapping):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ProcgenCheckpointError(f"{file} has no 'model_state_dict' (found: {found}): who wrote it?")
    strange = [k for k, v in state.items() if not (isinstance(v, Tensor) and v.is_floating_point())]
    if strange:
        raise ProcgenCheckpointError(f"{file}: model_state_dict entries {strange[:5]} are not arrays of numbers")
    return content


def _same_keys(state: Iterable[str], table: Iterable[str]) -> None:
    found, known = set(state), set(table)
    faults = []
    for key in sorted(found - known):
        close = difflib.get_close_matches(key, sorted(known - found) or sorted(known), n=1)
        faults.append(f"unknown key {key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    missing = sorted(known - found)
    if missing:
        faults.append(f"missing {', '.join(map(repr, missing[:5]))}{' ...' if len(missing) > 5 else ''}")
    if not any(key.startswith("gru.") for key in found):
        faults.append("there is no GRU: agents trained without recurrence are not read")
    if faults:
        raise ProcgenCheckpointError("; ".join(faults[:8]))


def _only(spaces: Mapping[str, Any], what: str, fit: list[str]) -> list[str]:
    if len(spaces) != 1 or len(fit) != 1:
        kind = "image (uint8)" if what == "image" else "discrete action"
        raise ProcgenCheckpointError(f"these agents know one {kind}; the world has {', '.join(spaces)}")
    return fit


def _sizes(spec: EnvSpec) -> str:
    shown = [f"{key} {'x'.join(map(str, space.shape))}" for key, space in spec.obs.items()]
    return ", ".join([*shown, *(f"{space.classes} actions" for space in spec.action.values())])
