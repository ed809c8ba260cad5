"""An agent as a folder: agent.safetensors (weights) and agent.json (config, world, hashes). Needs no trainer to load.

    <folder>/agent.safetensors   every entry of the agent's state_dict, float32
    <folder>/agent.json          format, agent name, config, EnvSpec, torchmem version, hashes of both files

A run directory holds such folders as `<logdir>/ckpt/<snapshot>/agent`, and `<logdir>/ckpt/latest` names the newest
snapshot.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from torchmem import __version__
from torchmem.errors import TorchmemError
from torchmem.files import atomic_write, sync_folder
from torchmem.models.checkpoint_formats import FORMAT, READABLE, transposed
from torchmem.models.protocol import Agent
from torchmem.types import EnvSpec

WEIGHTS, CARD = "agent.safetensors", "agent.json"
# config.name -> where its config and agent live; imported on demand, so that loading one agent does not import all
KINDS = {
    "dreamer": ("torchmem.models.dreamer.config:DreamerConfig", "torchmem.models.dreamer.agent:DreamerAgent"),
    "gru_dreamer": (
        "torchmem.models.gru_dreamer.config:GRUDreamerConfig", "torchmem.models.gru_dreamer.agent:GRUDreamerAgent",
    ),
    "ppo": ("torchmem.models.ppo.config:PPOConfig", "torchmem.models.ppo.agent:PPOAgent"),
    "r2i": ("torchmem.models.r2i.config:R2IConfig", "torchmem.models.r2i.agent:R2IAgent"),
    "simulator": (
        "torchmem.models.simulator.config:SimulatorConfig", "torchmem.models.simulator.model:SimulatorModel",
    ),
}

log = logging.getLogger("torchmem")


class CheckpointError(TorchmemError):
    """A checkpoint cannot be used; the message names the file and the way out."""


class WrongAgent(CheckpointError):
    """The weights are whole, but of an agent of another shape."""


# Writing -------------------------------------------------------------------------------------------------------------


def save_agent(agent: Agent, folder: str | Path) -> Path:
    """Write an agent as `folder`: complete or not at all. Returns the folder.

    Raises FileExistsError where `folder` already holds something, OSError on a full disk (nothing is left behind).
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} already exists: a checkpoint is never overwritten, choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process with the same id that died here
    part.mkdir()
    try:
        state = {name: value.detach().cpu().contiguous() for name, value in agent.state_dict().items()}
        atomic_write(part / WEIGHTS, lambda path: save_file(state, path))
        card = describe(agent) | {"weights_sha256": file_hash(part / WEIGHTS)}
        card["card_sha256"] = card_hash(card)
        atomic_write(part / CARD, json.dumps(card, indent=1, allow_nan=False) + "\n")
        os.rename(part, folder)  # onto nothing, or onto an empty folder
    except SafetensorError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(f"could not write {folder / WEIGHTS}: {error}") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return folder


def describe(agent: Agent) -> dict[str, Any]:
    """The card of an agent, without hashes: plain JSON values."""
    if agent.config.name not in KINDS:
        raise CheckpointError(f"agent {agent.config.name!r} is not one of {sorted(KINDS)}: add it to {__name__}.KINDS")
    return {
        "format": FORMAT,
        "torchmem": __version__,
        "agent": agent.config.name,
        "config": plain(dataclasses.asdict(agent.config)),
        "env_spec": plain(agent.spec.to_json()),
    }


def plain(value: Any) -> Any:
    """Mappings, sequences and numbers as strict JSON has them; infinities (bounds of a Space) become "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value.item() if isinstance(value, np.generic) else value


def file_hash(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def card_hash(card: Mapping[str, Any]) -> str:
    """sha256 of a card's content, however it is laid out."""
    rest = {key: value for key, value in card.items() if key != "card_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# Reading -------------------------------------------------------------------------------------------------------------


def load(path: str | Path, device: torch.device | str = "cpu") -> Agent:
    """The agent of a run directory (its newest snapshot), of a snapshot or of an agent folder.

    Raises CheckpointError naming the file that is missing, truncated, altered or of an unknown version.
    """
    folder = find_agent(path)
    if read_card(folder)["agent"] == "simulator":
        raise WrongAgent(f"{folder} is a simulator, it does not act: play in it (torchmem simulate), or name an agent")
    return load_agent(folder, device)


def find_agent(path: str | Path) -> Path:
    """The agent folder that a run directory, its ckpt folder, a snapshot or an agent folder means."""
    path = Path(path)
    latest = next((p for p in (path / "ckpt" / "latest", path / "latest") if p.is_file()), None)
    if latest is not None:
        name = latest.read_text().strip()
        if not name or name != Path(name).name or not (latest.parent / name).is_dir():
            there = sorted(p.name for p in latest.parent.iterdir() if p.is_dir() and not p.name.startswith("."))
            raise CheckpointError(
                f"{latest} names {name!r}, which is no snapshot beside it; load one of {there or 'none'} by its path"
            )
        path = latest.parent / name
    for folder in (path / "agent", path):
        if (folder / CARD).is_file():
            return folder
    raise CheckpointError(
        f"no agent in {path}: give a run directory (with ckpt/latest) or an agent folder (with {CARD} and {WEIGHTS})"
    )


def load_agent(folder: str | Path, device: torch.device | str = "cpu") -> Agent:
    """The agent that `save_agent` wrote to `folder`. Draws no global random numbers. Raises CheckpointError."""
    folder = Path(folder)
    card = read_card(folder)
    config_type, agent_type = (_named(home) for home in KINDS[card["agent"]])
    try:
        config = build(config_type, card["config"], folder / CARD)
        spec = spec_from(card["env_spec"])
        with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten at once
            agent = agent_type(spec, config)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CARD} does not describe an agent of this torchmem: {error}") from error
    load_weights(agent, folder, convert=True)
    for caveat in spec.caveats:
        log.warning("CAVEAT: %s: %s", folder, caveat)
    return agent.to(device)


def load_weights(agent: Agent, folder: str | Path, *, convert: bool = False) -> None:
    """Copy the weights of an agent folder into an agent built elsewhere (a resumed run). Raises CheckpointError.

    convert: bring weights of an older layout into today's. Not while resuming: optimiser states would not follow.
    """
    folder = Path(folder)
    card = read_card(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: load another snapshot")
    if file_hash(file) != card["weights_sha256"]:
        raise CheckpointError(f"{file} is truncated or altered (its hash is not that of {CARD}): load another snapshot")
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
    older = transposed(agent, found) if card["format"] == 1 else {}
    if older and not convert:
        raise WrongAgent(
            f"{file} has format 1, whose block weights lie the other way round: torchmem.load reads such an agent, but "
            f"a run cannot be resumed from it. Start a new run, or resume with the version that wrote it"
        )
    found |= older
    own = agent.state_dict()
    faults = [f"{n} is missing" for n in own.keys() - found.keys()]
    faults += [f"{n} is not part of the agent" for n in found.keys() - own.keys()]
    faults += [
        f"{n} is {tuple(found[n].shape)}, the agent needs {tuple(own[n].shape)}"
        for n in own.keys() & found.keys()
        if found[n].shape != own[n].shape
    ]
    if faults:
        raise WrongAgent(f"{file} does not fit this agent: " + "; ".join(sorted(faults)[:5]))
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(found[name])


def read_card(folder: Path) -> dict[str, Any]:
    """The checked content of agent.json. Raises CheckpointError."""
    file = folder / CARD
    try:
        card = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: this is not an agent folder") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON (truncated?): {error}; load another snapshot") from error
    if not isinstance(card, dict) or "format" not in card:
        raise CheckpointError(f"{file} has no format number: it is not an agent card of torchmem")
    if card["format"] not in READABLE:
        raise CheckpointError(
            f"{file} has format {card['format']!r} (torchmem {card.get('torchmem', 'unknown')}); "
            f"torchmem {__version__} reads formats {', '.join(map(str, READABLE))}: use the version that wrote it"
        )
    if card.get("card_sha256") != card_hash(card):
        raise CheckpointError(f"{file} was altered after it was written (its hash is wrong): load another snapshot")
    if card["agent"] not in KINDS:
        raise CheckpointError(f"{file} holds a {card['agent']!r} agent; this torchmem knows {sorted(KINDS)}")
    return card


def build(kind: type, data: Mapping[str, Any], file: Path) -> Any:
    """A config dataclass from plain data: unknown keys raise KeyError, missing ones take the default with a warning."""
    types = typing.get_type_hints(kind)
    unknown = set(data) - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise KeyError(f"unknown settings {sorted(unknown)} of {kind.__name__}")
    values = {}
    for field in dataclasses.fields(kind):
        if field.name not in data:
            log.warning("%s lacks %s.%s; taking its default", file, kind.__name__, field.name)
        elif dataclasses.is_dataclass(types[field.name]):
            values[field.name] = build(types[field.name], data[field.name], file)
        else:
            values[field.name] = data[field.name]
    return kind(**values)


def spec_from(data: Mapping[str, Any]) -> EnvSpec:
    """The EnvSpec of a card (or of a JSON file written by hand: bounds may be numbers, "inf" or "-inf")."""
    data = dict(data)
    for group in ("obs", "action"):
        data[group] = {
            key: {**space, **{bound: float(space[bound]) for bound in ("low", "high") if bound in space}}
            for key, space in data[group].items()
        }
    return EnvSpec.from_json(data)


def new_agent(spec: EnvSpec, config: Any) -> Any:
    """An untrained agent of the kind that `config.name` says; draws its weights from the global random numbers."""
    return _named(KINDS[config.name][1])(spec, config)


def _named(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)
