"""Command line -> RunConfig. Hydra picks the YAML and reads the overrides; dataclasses say what is valid.

Order of strength, weakest first: dataclass defaults, size, agent YAML, env YAML, trainer YAML, preset, command line.
Nothing of Hydra runs beside this: no change of directory, no outputs/ folder, no logging setup.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from torchmem.training.run_config import RunConfig, without_free_fields
from torchmem.training.typed import ConfigError, build, flatten, nearest, plain

GROUPS = ("agent", "env", "size", "trainer", "preset")
# config name -> its dataclass
AGENTS = {
    "dreamer": "torchmem.models.dreamer.config:DreamerConfig",
    "ppo": "torchmem.models.ppo.config:PPOConfig",
    "r2i": "torchmem.models.r2i.config:R2IConfig",
    "simulator": "torchmem.models.simulator.config:SimulatorConfig",
}
ALIASES = {"devices": "trainer.devices"}  # short spellings that everyone tries first

__all__ = [
    "GROUPS",
    "ConfigError",
    "RunConfig",
    "compose",
    "diff",
    "from_json",
    "options",
    "refuse_changes",
    "sweep",
    "to_json",
]


def components(group: str) -> dict[str, type]:
    """Name -> dataclass of every agent or every world."""
    if group == "env":
        worlds = dict(importlib.import_module("torchmem.envs.make").CONFIGS)
        return worlds | {"recording": importlib.import_module("torchmem.training.recorded_config").RecordedConfig}
    found = {}
    for name, address in AGENTS.items():
        module, _, attribute = address.partition(":")
        found[name] = getattr(importlib.import_module(module), attribute)
    return found


def options(group: str) -> list[str]:
    """The valid names of a group, in reading order."""
    folder = resources.files("torchmem.conf") / group
    files = [f.name for f in folder.iterdir()] if folder.is_dir() else []
    names = {name.removesuffix(".yaml") for name in files if name.endswith(".yaml")}
    if group in ("agent", "env"):
        names |= set(components(group))
    return sorted(names, key=lambda n: (int("".join(c for c in n if c.isdigit()) or 0) if group == "size" else 0, n))


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The checked configuration of one run from `key=value` words, such as ["env=dummy", "agent.lr=1e-4"].

    Raises ConfigError, one line naming the word and the nearest valid one, before anything has been started.
    """
    chosen, values = _split(_parse(overrides))
    selected, groups = _select(chosen)
    agent, env = components("agent")[groups["agent"]], components("env")[groups["env"]]
    sizes = selected.pop("size", {})
    if groups["agent"] not in sizes:
        raise ConfigError(f"size={groups['size']} has no line for agent={groups['agent']}, only for {', '.join(sizes)}")

    # Defaults, then size, then YAML, then the command line, all as plain data: types are checked once, at the end.
    tree = plain(RunConfig())
    tree |= {"agent": plain(agent()), "env": plain(env()), "groups": groups}
    kinds = {"agent": agent, "env": env}
    _merge(tree, {"agent": sizes[groups["agent"]]}, kinds, f"size={groups['size']}")
    origin = " ".join(f"{g}={groups[g]}" for g in ("agent", "env", "trainer", "preset"))
    _merge(tree, selected, kinds, f"the YAML files of {origin}")
    for name, value in values:
        _merge(tree, _nest(name, value), kinds, None)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"could not resolve an interpolation: {_one_line(error)}") from error
    return _typed(cast(dict[str, Any], resolved), kinds)


def sweep(overrides: Sequence[str]) -> list[RunConfig]:
    """`seed=1,2,3 agent.lr=1e-4,3e-4` -> one configuration per run, the last word varying fastest; all are checked.

    Raises ConfigError also where two of them would share a logdir.
    """
    try:
        choices = [w.sweep_string_iterator() if w.is_sweep_override() else [None] for w in _parse(overrides)]
    except HydraException as error:
        raise ConfigError(f"cannot read this sweep ({_one_line(error)}): list the values, as in seed=1,2,3") from error
    runs = [
        compose(
            [word if value is None else f"{word.split('=')[0]}={value}" for word, value in zip(overrides, combination)]
        )
        for combination in itertools.product(*choices)
    ]
    folders = [str(run.logdir) for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(f for f in folders if folders.count(f) > 1)
        raise ConfigError(
            f"two runs of this sweep would write to {twice}: give logdir= a part that varies, as ${{seed}}"
        )
    return runs


def to_json(config: RunConfig) -> str:
    """The whole resolved configuration, for <logdir>/config.json."""
    return json.dumps(plain(config), indent=2)


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`. Raises ConfigError for a file this version does not understand."""
    try:
        tree = json.loads(text)
        groups = tree["groups"]
        kinds = {g: components(g)[groups[g]] for g in ("agent", "env")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"not the config.json of a run known here: {type(error).__name__} {error}") from error
    return _typed(tree, kinds)


def diff(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines "name: old -> new" of every changed field that matters to learning (not logdir, steps, log, save)."""
    return [f"{name}: {a!r} -> {b!r}" for name, (a, b) in _changes(old, new).items()]


def refuse_changes(old: RunConfig, new: RunConfig) -> list[str]:
    """Lines of the changes that `new.allow_config_change` permits; ConfigError listing any other."""
    changed = _changes(old, new)
    allowed = new.allow_config_change
    refused = [n for n in changed if not any(a == "all" or n == a or n.startswith(f"{a}.") for a in allowed)]
    if refused:
        lines = "\n".join(f"  {n}: {changed[n][0]!r} -> {changed[n][1]!r}" for n in refused)
        raise ConfigError(
            f"the run in {new.logdir} was started with another configuration:\n{lines}\n"
            f"give it another logdir=, or allow the change: 'allow_config_change=[{','.join(refused)}]'"
        )
    return diff(old, new)


def _changes(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    a, b = (without_free_fields(flatten(plain(c))) for c in (old, new))
    missing = "(absent)"
    return {k: (a.get(k, missing), b.get(k, missing)) for k in (a | b) if a.get(k, missing) != b.get(k, missing)}


def _parse(words: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for word in words:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException as error:
            text = f"cannot read '{word}': write key=value, quoted where it holds spaces ({_one_line(error)})"
            raise ConfigError(text) from error
    return parsed


def _split(parsed: Sequence[Override]) -> tuple[dict[str, str], list[tuple[str, Any]]]:
    """Group choices, and (dotted name, value) pairs, of the command line."""
    chosen: dict[str, str] = {}
    values: list[tuple[str, Any]] = []
    for word in parsed:
        name = ALIASES.get(word.key_or_group, word.key_or_group)
        if word.type is not OverrideType.CHANGE or word.package is not None:
            raise ConfigError(f"'{word.input_line}': every field exists already, so write plainly {name}=value")
        if word.is_sweep_override():
            raise ConfigError(f"'{word.input_line}' names several values: add --multirun, or quote it")
        value = word.value()
        if name in GROUPS:
            value = str(value)
            if value not in options(name):
                valid = options(name)
                raise ConfigError(f"unknown {name} '{value}'{nearest(value, valid)} (valid: {', '.join(valid)})")
            chosen[name] = value
        elif name.split(".")[0] == "groups":
            raise ConfigError(f"'{word.input_line}': choose with agent=, env=, size=, trainer= or preset=")
        else:
            values.append((name, value))
    return chosen, values


def _select(chosen: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What the chosen YAML files say, merged by Hydra, and the name chosen in every group."""
    store = ConfigStore.instance()
    folder = resources.files("torchmem.conf")
    for group in ("agent", "env"):
        for name in components(group):
            if not (folder / group / f"{name}.yaml").is_file():
                store.store(group=group, name=name, node={})  # a component that differs in nothing needs no file
    try:
        with initialize_config_module("torchmem.conf", version_base="1.3"):
            found = hydra_compose("train", [f"{k}={v}" for k, v in chosen.items()], return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"a file under torchmem/conf is wrong: {_one_line(error)}") from error
    groups = {g: str(found.hydra.runtime.choices[g]) for g in GROUPS}
    with open_dict(found):
        del found["hydra"]
    selected = cast(dict[str, Any], OmegaConf.to_container(found))
    return {k: v for k, v in selected.items() if not (k in GROUPS and not v)}, groups  # a file of comments sets nothing


def _merge(into: dict[str, Any], new: Mapping[str, Any], kinds: Mapping[str, type], origin: str | None) -> None:
    """Write `new` into `into`; a key that is not there is refused. origin: who wrote it, None: the command line."""

    def walk(base: dict[str, Any], extra: Mapping[str, Any], prefix: str) -> None:
        for key, value in extra.items():
            if key not in base:
                valid = [*GROUPS, *flatten({k: v for k, v in into.items() if k != "groups"})]
                source = f" (set by {origin})" if origin else ""
                kind = next((f" of {k.__name__}" for g, k in kinds.items() if prefix == f"{g}."), "")
                raise ConfigError(f"unknown key '{prefix}{key}'{kind}{source}{nearest(f'{prefix}{key}', valid)}")
            if isinstance(base[key], dict) and base[key] and isinstance(value, Mapping):
                walk(base[key], value, f"{prefix}{key}.")
            else:
                base[key] = value

    walk(into, new, "")


def _typed(tree: Mapping[str, Any], kinds: Mapping[str, type]) -> RunConfig:
    parts = {g: build(kind, _mapping(tree[g], g), g) for g, kind in kinds.items()}
    named = getattr(parts["agent"], "name", None)
    if named is not None and named != tree["groups"]["agent"]:
        raise ConfigError(f"agent.name: is {tree['groups']['agent']!r} and follows agent=, got {named!r}")
    return build(RunConfig, {**tree, **parts})


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: expected fields, got {value!r}")
    return value


def _nest(name: str, value: Any) -> dict[str, Any]:
    head, _, rest = name.partition(".")
    return {head: _nest(rest, value) if rest else value}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
