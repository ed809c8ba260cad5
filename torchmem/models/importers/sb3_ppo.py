"""Read the zip of a Stable-Baselines3 PPO (or A2C) agent with an MlpPolicy into agent=ppo.

    policy.pth   weights by name; read with weights_only, so that its pickle can name tensors and containers only
    data         JSON of the settings; what it holds as base64 pickles (":serialized:") stays unread

The agent has no core and two towers: actor and critic each read the observation through layers of their own. Running
statistics of VecNormalize are kept in another file, a pickle that is not read: an agent trained with them needs its
observations scaled outside. The optimiser's state is left behind.
"""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.models.checkpoint import file_hash, save_agent
from torchmem.models.importers.dreamerv3_spec import read_spec
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.types import EnvSpec, Space

log = logging.getLogger("torchmem")

TOWERS = {"policy_net": "actor", "value_net": "critic"}
# data -> PPOConfig, where data holds a plain number. A schedule (a pickled function) leaves our default.
SETTINGS = {
    "gamma": "gamma", "gae_lambda": "lam", "ent_coef": "entropy", "vf_coef": "value_scale",
    "max_grad_norm": "clip_norm", "learning_rate": "lr", "clip_range": "clip", "clip_range_vf": "value_clip",
    "normalize_advantage": "normalise_advantage", "target_kl": "target_kl",
}  # fmt: skip
HARMLESS = {"net_arch", "ortho_init", "log_std_init", "optimizer_class", "optimizer_kwargs", "normalize_images"}
MAX_BYTES = 1 << 30  # of an unpacked member


class SB3ZipError(TorchmemError):
    """A file is not the zip of an agent this importer reads; the message names the file, key or setting."""


def import_zip(file: str | Path, out: str | Path, spec: EnvSpec | str | Path) -> Path:
    """Write `out` as a run directory that `torchmem.load` reads. Returns `out`.

    spec: the world, or a JSON file that describes it; with one vector of numbers to see and one action key.
    Raises FileExistsError where `out` holds something, SB3ZipError and SpecError.
    """
    file, out = Path(file), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists: name a new folder for the imported agent")
    weights, data, version = read(file)
    if not isinstance(spec, EnvSpec):
        spec = read_spec(spec)
    try:
        agent = from_state_dict(weights, data, spec)
    except SB3ZipError as error:
        raise SB3ZipError(f"{file}: {error}") from error
    steps = data.get("num_timesteps")
    name = f"{steps:012d}" if isinstance(steps, int) and steps >= 0 else "imported"
    save_agent(agent, out / "ckpt" / name / "agent")
    source = {
        "program": "stable-baselines3", "version": version, "file": file.name, "file_sha256": file_hash(file),
        "agent_steps": steps, "env_spec": spec.name,
    }  # fmt: skip
    atomic_write(out / "imported.json", json.dumps(source, indent=1) + "\n")
    atomic_write(out / "ckpt" / "latest", name + "\n")
    log.info("imported %s: %d weights for env %s", file, sum(p.numel() for p in agent.parameters()), spec.name)
    return out


def from_state_dict(weights: Mapping[str, Tensor], data: Mapping[str, Any], spec: EnvSpec) -> PPOAgent:
    """An agent with the arrays of a policy.pth.

    data: the zip's settings; {} for SB3's defaults. Raises SB3ZipError naming each key that is unknown or missing, the
    array that does not fit, or the setting that this agent cannot follow.
    """
    _check_policy(data)
    action = _fitting_keys(spec, data)
    sizes = {tower: _tower(weights, tower) for tower in TOWERS}
    widths = {units for tower in sizes.values() for units in tower}
    if len(widths) > 1 or len({len(s) for s in sizes.values()}) > 1:
        raise SB3ZipError(f"agent=ppo has towers of equal layers; this one has pi {sizes['policy_net']} and vf "
                          f"{sizes['value_net']} units")
    config = PPOConfig(
        core="mlp", core_layer=False, encoder_layers=0, see_action=False, activation=_activation(data),
        head_layers=len(sizes["policy_net"]), head_units=max(widths, default=64), **_settings(data),
    )
    with torch.random.fork_rng(devices=[]):  # the first weights are overwritten at once
        agent = PPOAgent(spec, config)
    table = names(config.head_layers, action, not spec.action[action].discrete)
    faults = [f"unknown key {key!r}" for key in weights if key not in table]
    faults += [f"missing {key!r}" for key in table if key not in weights]
    if faults:
        raise SB3ZipError("policy.pth: " + "; ".join(faults[:8]) + ". Only MlpPolicy without shared layers is read")
    own = agent.state_dict()
    for theirs, ours in table.items():
        value = weights[theirs]
        if own[ours].shape != value.shape:
            raise SB3ZipError(f"{theirs!r} is {tuple(value.shape)}, the world {spec.name} needs "
                              f"{tuple(own[ours].shape)}: was the agent trained on another one?")
        own[ours].copy_(value)
    return agent


def _tower(weights: Mapping[str, Tensor], name: str) -> list[int]:
    """Units of each layer of one tower."""
    matches = (re.fullmatch(rf"mlp_extractor\.{name}\.(\d+)\.weight", key) for key in weights)
    found = {int(match[1]): len(weights[match[0]]) for match in matches if match}
    return [found[i] for i in sorted(found)]


def names(layers: int, action: str, continuous: bool) -> dict[str, str]:
    """Their key -> our parameter."""
    ours = {}
    for theirs, tower in TOWERS.items():
        ours |= {f"mlp_extractor.{theirs}.{2 * i}": f"{tower}.mlp.{i}.0" for i in range(layers)}
    ours |= {"action_net": f"actor.out.{action}", "value_net": "critic.out"}
    ours = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in ours.items() for leaf in ("weight", "bias")}
    return ours | ({"log_std": f"actor.log_std.{action}"} if continuous else {})


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """Weights, settings and version of a zip. Nothing of it is run. Raises SB3ZipError."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = set(archive.namelist())
            if missing := {"policy.pth", "data"} - found:
                raise SB3ZipError(f"{file} lacks {', '.join(sorted(missing))}: it is no agent saved by SB3's save()")
            for name in ("policy.pth", "data"):
                if archive.getinfo(name).file_size > MAX_BYTES:
                    raise SB3ZipError(f"{file}: {name} would unpack to more than {MAX_BYTES >> 30} GiB")
            raw, data = archive.read("policy.pth"), json.loads(archive.read("data"))
            version = "_stable_baselines3_version"
            text = archive.read(version).decode().strip()[:40] if version in found else None
    except FileNotFoundError as error:
        raise SB3ZipError(f"{file} is missing") from error
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SB3ZipError(f"{file} is not a complete zip of SB3: {error}") from error
    try:
        weights = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise SB3ZipError(f"{file}: policy.pth holds something else than arrays, refused unread: {reason}") from error
    except Exception as error:  # a damaged file can fail in any operation
        raise SB3ZipError(f"{file}: policy.pth is not a complete file of torch.save: {error}") from error
    if not isinstance(data, dict) or not isinstance(weights, dict):
        raise SB3ZipError(f"{file}: data or policy.pth is no dictionary")
    strange = [k for k, v in weights.items() if not (isinstance(v, Tensor) and v.is_floating_point())]
    if strange:
        raise SB3ZipError(f"{file}: policy.pth entries {strange[:5]} are not arrays of numbers")
    return dict(weights), data, text


def _check_policy(data: Mapping[str, Any]) -> None:
    kind = data.get("policy_class")
    if isinstance(kind, Mapping):
        home, init = kind.get("__module__"), str(kind.get("__init__"))
        if home != "stable_baselines3.common.policies" or "ActorCriticPolicy." not in init:
            raise SB3ZipError(f"policy_class is of {home} ({init}); only SB3's MlpPolicy of PPO and A2C is read")
        if "ActorCriticCnnPolicy." in init or "MultiInputActorCriticPolicy." in init:
            raise SB3ZipError(f"policy_class {init} reads images or dictionaries; only MlpPolicy is read")
    if data.get("use_sde"):
        raise SB3ZipError("use_sde: agent=ppo has no state-dependent exploration")
    kwargs = data.get("policy_kwargs") or {}
    unknown = [key for key in kwargs if key not in HARMLESS | {"activation_fn"} and not key.startswith(":")]
    if unknown:
        raise SB3ZipError(f"policy_kwargs {sorted(unknown)} are not known to this importer")


def _activation(data: Mapping[str, Any]) -> Any:
    """policy_kwargs.activation_fn, kept in the JSON as the text "<class 'torch.nn.modules.activation.ReLU'>"."""
    text = str((data.get("policy_kwargs") or {}).get("activation_fn", "Tanh"))
    match = re.fullmatch(r"(?:<class '(?:torch\.nn\.modules\.activation\.)?)?(Tanh|ReLU)(?:'>)?", text)
    if match is None:
        raise SB3ZipError(f"policy_kwargs.activation_fn {text}: agent=ppo has relu and tanh")
    return match[1].lower()


def _settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """What trained it, for going on with it."""
    out: dict[str, Any] = {"schedule": "constant", "eps": 1e-5, "value_clip": None}
    for theirs, ours in SETTINGS.items():
        value = data.get(theirs)
        if isinstance(value, (bool, int, float)):
            out[ours] = 2.0 * value if theirs == "vf_coef" else value  # of the squared error; ours is half of that
    return out


def _fitting_keys(spec: EnvSpec, data: Mapping[str, Any]) -> str:
    """The action key, once the spaces fit this family of agents."""
    if len(spec.obs) != 1 or len(spec.action) != 1:
        raise SB3ZipError(f"MlpPolicy has one observation and one action key; the world {spec.name} has "
                          f"{', '.join(spec.obs)} and {', '.join(spec.action)}")
    ((_, seen),), ((action, space),) = spec.obs.items(), spec.action.items()
    if seen.image or space.dtype == "bool":
        raise SB3ZipError(f"the world {spec.name} shows an image or acts with bools; that is not read")
    for name, ours in (("observation_space", seen), ("action_space", space)):
        _fitting_space(name, data.get(name), ours, spec.name)
    return action


def _fitting_space(name: str, told: Any, ours: Space, world: str) -> None:
    """Refuse a space of another kind or size. told: how SB3 prints it in JSON."""
    if not isinstance(told, Mapping):
        return
    kind = str(told.get(":type:"))
    if ("Discrete" in kind) != ours.discrete:
        raise SB3ZipError(f"{name} is {kind}, but of the world {world} it is {ours}")
    if "Box" in kind and str(told.get("_shape")) not in (str(list(ours.shape)), str(ours.shape)):
        raise SB3ZipError(f"{name} has shape {told.get('_shape')}, but in the world {world} {ours.shape}")
    if "discrete.Discrete'" in kind and str(told.get("start", "0")) != "0":
        raise SB3ZipError(f"{name} counts from {told['start']}; agent=ppo counts from 0")
    if name == "action_space" and "Box" in kind:
        bounds = set(re.findall(r"[-+.\deE]+", f"{told.get('low', -1)} {told.get('high', 1)}"))
        if {abs(float(b)) for b in bounds} != {1.0}:
            raise SB3ZipError(f"{name} is bounded by {told.get('low')} and {told.get('high')}; only -1 to 1 is read")
