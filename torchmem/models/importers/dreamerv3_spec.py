"""Which observations and actions an official DreamerV3 agent was trained on: its checkpoint does not say."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.errors import TorchmemError
from torchmem.models.checkpoint import spec_from
from torchmem.types import RESERVED, EnvSpec, Space

log = logging.getLogger("torchmem")

NOT_OBSERVED = (*RESERVED, "stepid", "consec", "seed")  # keys of a replay chunk that are no observation
NOT_OBSERVED_PREFIXES = ("dyn/", "enc/", "dec/", "log/")
# what a spec file holds at least
EXAMPLE = {
    "name": "my_world",
    "control_hz": 10.0,
    "obs": {"image": {"shape": [64, 64, 3], "dtype": "uint8"}},
    "action": {"action": {"shape": [], "dtype": "int32", "classes": 5}},
}


class SpecError(TorchmemError):
    """The world an agent was trained on is not known well enough; the message shows how to describe it."""


def ask(reason: str) -> SpecError:
    """The error that asks for a spec file, with one to copy."""
    return SpecError(f"{reason}; describe the world in a file and give it as --spec FILE.json: {json.dumps(EXAMPLE)}")


def read_spec(path: str | Path) -> EnvSpec:
    """An EnvSpec from a JSON file. Raises SpecError naming the file and what is wrong with it."""
    path = Path(path)
    try:
        return spec_from(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ask(f"{path} is missing") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ask(f"{path} does not describe a world ({type(error).__name__}: {error})") from error


def infer_spec(logdir: Path, params: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> EnvSpec:
    """Keys, shapes and dtypes from the first replay chunk; numbers of classes from the widths of the output layers.

    Raises SpecError that asks for a spec file where there is no chunk, or where the order of image keys matters.
    """
    chunks = sorted((logdir / "replay").glob("*.npz"))
    if not chunks:
        raise ask(f"{logdir / 'replay'} holds no replay chunk to tell the observations from")
    try:
        with np.load(chunks[0], allow_pickle=False) as chunk:
            example = {key: chunk[key] for key in chunk.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ask(f"{chunks[0]} is not a readable replay chunk ({error})") from error
    action_keys = sorted({path.split("/")[2] for path in params if path.startswith("pol/head/")})
    missing = [key for key in action_keys if key not in example]
    if missing:
        raise ask(f"{chunks[0]} lacks the action keys {missing} of the policy")
    obs = {
        key: _observed(key, value, params)
        for key, value in example.items()
        if key not in action_keys and key not in NOT_OBSERVED and not key.startswith(NOT_OBSERVED_PREFIXES)
    }
    images = [key for key, space in obs.items() if space.image]
    if len(images) > 1:
        raise ask(f"the agent sees several images, {images}, and the order in which it decodes them is not stored")
    action = {key: _acted(key, example[key], params) for key in action_keys}
    task = str(config.get("task", "unknown"))
    repeat = config.get("env", {}).get(task.split("_")[0], {}).get("repeat", 1)
    log.warning("%s does not say how many steps make a second: taking 1; --spec can tell", logdir)
    return EnvSpec(task, obs, action, control_hz=1.0, action_repeat=int(repeat))


def _observed(key: str, value: np.ndarray, params: Mapping[str, np.ndarray]) -> Space:
    shape, dtype = value.shape[1:], value.dtype.name
    if len(shape) == 3 and dtype == "uint8":
        return Space(shape, dtype)
    logits = params.get(f"dec/vec/{key}/logits/bias")
    if logits is None:
        return Space(shape, dtype)
    return Space(shape, dtype, classes=_classes(f"dec/vec/{key}/logits", logits, shape))


def _acted(key: str, value: np.ndarray, params: Mapping[str, np.ndarray]) -> Space:
    shape, dtype = value.shape[1:], value.dtype.name
    logits = params.get(f"pol/head/{key}/logits/bias")
    if logits is None:
        return Space(shape, dtype, low=-1.0, high=1.0)  # the original rescales actions on the environment's side
    return Space(shape, dtype, classes=_classes(f"pol/head/{key}/logits", logits, shape))


def _classes(path: str, bias: np.ndarray, shape: tuple[int, ...]) -> int:
    size = int(np.prod(shape))
    if bias.size % size:
        raise ask(f"{path} has {bias.size} outputs, which {size} entries of shape {shape} cannot share")
    return bias.size // size
