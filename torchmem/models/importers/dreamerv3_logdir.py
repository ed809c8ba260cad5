"""A run directory of the official DreamerV3 program, turned into a run directory of torchmem.

<logdir>/config.yaml              YAML 1.2
<logdir>/ckpt/latest              names a folder beside it
<logdir>/ckpt/<folder>/agent.pkl  {"params": {path: array}, "counters": {...}}; `done` marks the folder complete
<logdir>/replay/*.npz             tells observation and action keys, which nothing else does
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write
from torchmem.models.checkpoint import file_hash, plain, save_agent
from torchmem.models.importers.array_pickle import PickleRefused, load_arrays
from torchmem.models.importers.dreamerv3 import from_arrays
from torchmem.models.importers.dreamerv3_spec import infer_spec, read_spec
from torchmem.types import EnvSpec

log = logging.getLogger("torchmem")

_LAYERS = {"act", "norm", "winit", "layers", "units"}
_HEAD = _LAYERS | {"output", "outscale"}
_LOSS = {"lam", "slowtar", "slowreg"}
_NORMALIZER = {"impl", "rate", "limit"}
_IMAGES = _LAYERS | {"depth", "mults", "kernel", "strided", "outer"}
_RSSM = {"deter", "hidden", "stoch", "classes", "blocks", "act", "norm", "winit", "outscale", "unimix", "absolute"}
# All settings of the original's `agent` section. One that is not here could change what the agent computes.
SETTINGS: dict[str, set[str]] = {
    "": {"ac_grads", "imag_last", "imag_length", "horizon", "contdisc", "reward_grad", "repval_loss", "repval_grad"}
    | {"policy_dist_disc", "policy_dist_cont", "report", "report_gradnorms"},
    "loss_scales": {"rec", "rew", "con", "dyn", "rep", "policy", "value", "repval"},
    "opt": {"lr", "agc", "eps", "beta1", "beta2", "momentum", "wd", "schedule", "warmup", "anneal"},
    "dyn": {"typ"},
    "dyn.rssm": _RSSM | {"imglayers", "obslayers", "dynlayers", "free_nats"},
    "enc": {"typ"},
    "enc.simple": _IMAGES | {"symlog"},
    "dec": {"typ"},
    "dec.simple": _IMAGES | {"outscale", "bspace"},
    "rewhead": _HEAD | {"bins"},
    "conhead": _HEAD,
    "policy": _LAYERS | {"outscale", "minstd", "maxstd", "unimix"},
    "value": _HEAD | {"bins"},
    "imag_loss": _LOSS | {"actent"},
    "repl_loss": _LOSS,
    "slowvalue": {"rate", "every"},
    "retnorm": _NORMALIZER | {"perclo", "perchi", "debias"},
    "valnorm": _NORMALIZER,
    "advnorm": _NORMALIZER,
}


class OfficialRunError(TorchmemError):
    """A logdir is not one of danijar/dreamerv3 @ e3f0224, or not a complete one; the message names the file."""


# observations that versions of the program fed to the agent although they are the truth -> our name of that truth
LEAKS = {"player_pos": "pos"}  # vviggyy/dreamerv3f, until it had the switch agent.include_position


def import_logdir(
    logdir: str | Path, out: str | Path, spec: EnvSpec | str | Path | None = None, *,
    allow_leaked_position: bool = False,
) -> Path:  # fmt: skip
    """Write `out` as a run directory that `torchmem.load` reads, from the newest checkpoint of `logdir`. Returns `out`.

    spec: the world, or a JSON file that describes it; inferred from replay chunks and layer widths where not given.
    allow_leaked_position: read an agent that was trained on its own position all the same. It is then fed the world's
    `pos` as an input apart (EnvSpec.leaked), and every result that is made from it says so.
    Raises FileExistsError where `out` holds something, OfficialRunError, PickleRefused or SpecError naming the file,
    array or setting that is missing or unknown. Nothing of the pickle is run (see array_pickle.py).
    """
    logdir, out = Path(logdir), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists: name a new folder for the imported agent")
    config = read_config(logdir / "config.yaml")
    folder = newest(logdir)
    params, counters = read_params(folder / "agent.pkl")
    if spec is None:
        spec = infer_spec(logdir, params, config)
    elif not isinstance(spec, EnvSpec):
        spec = read_spec(spec)
    spec = _with_leaks(spec, params, folder / "agent.pkl", allow_leaked_position)
    try:
        agent = from_arrays(params, config, spec)
    except (KeyError, ValueError) as error:
        raise OfficialRunError(f"{folder / 'agent.pkl'}: {error.args[0]}") from error
    save_agent(agent, out / "ckpt" / folder.name / "agent")
    source = {
        "program": "danijar/dreamerv3",
        "checkpoint": folder.name,
        "agent_pkl_sha256": file_hash(folder / "agent.pkl"),
        "counters": plain(counters),
        "task": config.get("task"),
        "compute_dtype": config.get("jax", {}).get("compute_dtype"),
        "caveats": list(agent.spec.caveats),
    }
    atomic_write(out / "imported.json", json.dumps(source, indent=1) + "\n")
    atomic_write(out / "ckpt" / "latest", folder.name + "\n")
    log.info("imported %s (%s) as %s: %s", logdir, counters, out, ", ".join(agent.spec.obs))
    return out


def _with_leaks(spec: EnvSpec, params: Mapping[str, np.ndarray], file: Path, allowed: bool) -> EnvSpec:
    """The spec, which names what was leaked. Raises OfficialRunError where that is not allowed."""
    decoded = {path.split("/")[2] for path in params if path.startswith("dec/vec/")}
    found = {key: truth for key, truth in LEAKS.items() if key in spec.obs or key in decoded}
    if not found:
        return spec
    if not allowed:
        raise OfficialRunError(
            f"{file} is an agent that was given its own position ({', '.join(found)}) as an input: that it knows where "
            f"it is shows nothing. To read it all the same, marked as such, give --allow-leaked-position "
            f"(allow_leaked_position=True)"
        )
    if missing := sorted(set(found) - set(spec.obs)):
        raise OfficialRunError(f"{file} was trained on {missing[0]!r}, which the given spec does not observe: add it")
    spec = dataclasses.replace(spec, leaked=found)
    log.warning("CAVEAT: %s", spec.caveats[0])
    return spec


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml as YAML 1.2 (1e-20 is a number there), its `agent` section checked for settings unknown here."""
    try:
        config = YAML(typ="safe", pure=True).load(path.read_text())
    except FileNotFoundError as error:
        raise OfficialRunError(f"{path} is missing: is this a logdir of danijar/dreamerv3?") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise OfficialRunError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("agent"), dict):
        raise OfficialRunError(f"{path} has no `agent` section: is it of danijar/dreamerv3 @ e3f0224?")
    faults = list(_setting_faults(config["agent"]))
    if faults:
        raise OfficialRunError(f"{path}: " + "; ".join(faults[:5]))
    return config


def _setting_faults(agent: Mapping[str, Any]):
    sections = {name for name in SETTINGS if name}
    for name, known in SETTINGS.items():
        section: Any = agent
        for part in name.split(".") if name else ():
            section = section.get(part) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping):
            yield f"section agent.{name} is missing"
            continue
        prefix = f"{name}." if name else ""
        leaves = {key for key in section if prefix + key not in sections}
        yield from (f"unknown setting agent.{prefix}{key}" for key in sorted(leaves - known))
        yield from (f"setting agent.{prefix}{key} is missing" for key in sorted(known - leaves - {"symlog"}))


def newest(logdir: Path) -> Path:
    """The checkpoint folder that ckpt/latest names; complete, or OfficialRunError."""
    latest = logdir / "ckpt" / "latest"
    if not latest.is_file():
        raise OfficialRunError(f"{latest} is missing: is this a logdir of danijar/dreamerv3 with a checkpoint?")
    name = latest.read_text().strip()
    folder = latest.parent / name
    if not name or name != Path(name).name or not folder.is_dir():
        raise OfficialRunError(f"{latest} names {name!r}, which is no folder beside it")
    if not (folder / "done").exists():
        raise OfficialRunError(f"{folder} has no file `done`: its writing was interrupted; name another in {latest}")
    return folder


def read_params(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Parameters by official path, and counters, of an agent.pkl."""
    try:
        content = load_arrays(path)
    except FileNotFoundError as error:
        raise OfficialRunError(f"{path} is missing") from error
    if not isinstance(content, dict) or not isinstance(content.get("params"), dict):
        raise PickleRefused(f"{path} holds no `params`: it is not the agent.pkl of danijar/dreamerv3")
    params = content["params"]
    strange = [k for k, v in params.items() if not isinstance(k, str) or not isinstance(v, (np.ndarray, np.generic))]
    if strange:
        raise PickleRefused(f"{path}: params {strange[:5]} are not arrays")
    return params, content.get("counters", {})
