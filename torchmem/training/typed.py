"""Plain data -> a tree of dataclasses, checked key by key. The one place where config types are enforced."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union


class ConfigError(ValueError):
    """The configuration is wrong; the message names the key, what was expected and the nearest valid choice."""


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Field name -> resolved type of a dataclass."""
    return typing.get_type_hints(kind)


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'x'?", or nothing where nothing is close."""
    choices = list(choices)
    # A key given without its group ("lr" for "agent.lr") is the commonest slip, so whole last segments win.
    leaf = word.rsplit(".", 1)[-1]
    same = [c for c in choices if c.rsplit(".", 1)[-1] == leaf]
    close = same[:1] or difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if not close:
        leaves = {c.rsplit(".", 1)[-1]: c for c in choices}
        close = [leaves[x] for x in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    return f"; did you mean '{close[0]}'?" if close else ""


def describe(kind: Any) -> str:
    """A type as a reader of --help wants it: "int or 'auto'"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "|".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is not None:
        inner = ", ".join(describe(a) for a in arguments if a is not Ellipsis)
        return f"{origin.__name__}[{inner}]"
    return "null" if kind is type(None) else getattr(kind, "__name__", str(kind))


def convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as type `kind`, or ConfigError naming the dotted `name`. Only lossless conversions are made."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return build(typing.cast(type, kind), value, name)
        if isinstance(value, typing.cast(type, kind)):
            return value
    elif origin is Literal:
        for option in arguments:
            if value == option and type(value) is type(option):
                return option
        text = nearest(str(value), [str(a) for a in arguments])
        hint = " (YAML reads a bare on, off, yes or no as a boolean: quote it)" if isinstance(value, bool) else ""
        raise ConfigError(f"{name}: expected {describe(kind)}, got {value!r}{hint}{text}")
    elif origin in (Union, types.UnionType):
        # Exact types first, so that "auto" stays a word and 3 an int where a float would take it too.
        for option in sorted(arguments, key=lambda a: a is not type(value)):
            try:
                return convert(option, value, name)
            except ConfigError:
                continue
    elif origin in (list, tuple):
        if isinstance(value, (list, tuple)):
            items = list(value)
            if origin is list or arguments[-1] is Ellipsis:
                inner = [arguments[0] if arguments else Any] * len(items)
            else:
                inner = list(arguments)
            if len(inner) == len(items):
                return origin(convert(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(inner, items, strict=True)))
    elif origin in (dict, Mapping) or kind is dict:
        if isinstance(value, Mapping):
            inside = arguments[1] if arguments else Any
            return {str(k): convert(inside, v, f"{name}.{k}") for k, v in value.items()}
    elif kind is type(None):
        if value is None:
            return None
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif kind is int:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
            return int(value)  # steps=1e6 means a million
    elif kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise ConfigError(f"{name}: expected {describe(kind)}, got {value!r} ({type(value).__name__})")


def build(kind: type, data: Mapping[str, Any], name: str = "") -> Any:
    """An instance of dataclass `kind` from nested plain data; missing keys keep their defaults.

    Raises ConfigError for an unknown key, a wrong type, or a value that the dataclass's own __post_init__ refuses.
    """
    prefix = f"{name}." if name else ""
    fields = {f.name for f in dataclasses.fields(kind) if f.init}
    for key in data:
        if key not in fields:
            valid = [prefix + f for f in sorted(fields)]
            raise ConfigError(f"unknown key '{prefix}{key}'{nearest(f'{prefix}{key}', valid)}")
    values = {k: convert(hints(kind)[k], v, prefix + k) for k, v in data.items()}
    try:
        return kind(**values)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}" if name else str(error)) from error


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as the dicts and lists that JSON and YAML know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted names; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def documented(kind: type, prefix: str = "", default: Any = None) -> list[tuple[str, str, Any, str]]:
    """(dotted name, type, default, sentence) of every leaf field of dataclass `kind`, in source order."""
    rows: list[tuple[str, str, Any, str]] = []
    default = kind() if default is None else default
    for field in dataclasses.fields(kind):
        if not field.init or not field.metadata.get("help"):
            continue
        value, inner = getattr(default, field.name), hints(kind)[field.name]
        if dataclasses.is_dataclass(inner):
            rows += documented(typing.cast(type, inner), f"{prefix}{field.name}.", value)
        else:
            rows.append((f"{prefix}{field.name}", describe(inner), plain(value), field.metadata["help"]))
    return rows
