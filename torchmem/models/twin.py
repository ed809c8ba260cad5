"""A second module tree over the same weights, so that hooks and overlays on one never touch the other."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from torch import nn

Tree = TypeVar("Tree", bound=nn.Module)


def twin(module: Tree) -> Tree:
    """Copy the modules of a tree, and nothing else: both trees hold the very same Parameters and buffers.

    An optimiser step, `load_state_dict`, `commit` and `.to()` on either are seen by both. The forward and backward
    hooks of the original stay there. Everything that is no module (config, spec, callables of other objects) is shared;
    attributes are bound anew, so that setting one (`dtype`, `train()`) affects one tree only.

    What is not seen: a Parameter that replaces another (`load_state_dict(assign=True)`, pruning).
    """
    copies: dict[int, nn.Module] = {}
    for part in module.modules():  # a module with two names is one module in the copy, too
        copies[id(part)] = type(part).__new__(type(part))
    for part in module.modules():
        copies[id(part)].__dict__.update({name: _copied(name, value, copies) for name, value in vars(part).items()})
    return copies[id(module)]  # pyright: ignore[reportReturnType]


def _copied(name: str, value: Any, copies: dict[int, nn.Module]) -> Any:
    """An attribute of a module, as its copy holds it."""
    if name == "_buffers":
        return value  # the dictionary itself: `.to()` replaces buffers inside it, unlike Parameters
    if name in ("_compiled_call_impl", "_is_full_backward_hook"):
        return None  # of the original alone: Module.compile(), its hooks
    if name.endswith("_hooks") or "_hooks_" in name:
        return type(value)(value) if "state_dict" in name else type(value)()
    return _mirrored(value, copies)


def _mirrored(value: Any, copies: dict[int, nn.Module]) -> Any:
    """Modules inside plain containers and bound methods become those of the copy; other objects are shared."""
    if isinstance(value, nn.Module):
        return copies.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in copies:
        return MethodType(value.__func__, copies[id(value.__self__)])
    if type(value) is list:
        return [_mirrored(item, copies) for item in value]
    if type(value) is tuple:
        return tuple(_mirrored(item, copies) for item in value)
    if type(value) is dict:
        return {key: _mirrored(item, copies) for key, item in value.items()}
    return value
