"""Weight edits on a module tree: effective weights lie over the parameters for a pass, and training spares the rest."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from torchmem.surgery.weight_edit import WeightEdit

_PLANS = "_torchmem_overlay_plans"
Slot = tuple[nn.Module, str]  # a module and the key of one of its parameters


class _Plan:
    """Where the edits of one tree go, and the effective weights that were computed without gradient."""

    def __init__(self, tree: nn.Module, edits: Sequence[WeightEdit]) -> None:
        self.tree, self.edits = tree, tuple(edits)
        self.depth = 0  # of nested entries: only the outermost puts on and takes off
        self.taken: list[tuple[list[Slot], Tensor]] = []
        # parameter number -> (what it was computed from, its version and address then, result)
        self.kept: dict[int, tuple[Tensor, int, int, Tensor]] = {}
        names: dict[str, int] = {}  # every name of a parameter -> its number; a shared one has many
        numbers: dict[int, int] = {}
        slots: list[list[Slot]] = []
        for path, module in tree.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is None:
                    continue
                number = numbers.setdefault(id(parameter), len(slots))
                if number == len(slots):
                    slots.append([])
                slots[number].append((module, key))
                names[f"{path}.{key}" if path else key] = number
        known = {name: slots[n][0][0]._parameters[slots[n][0][1]] for name, n in names.items()}
        self.work: dict[int, list[tuple[WeightEdit, str]]] = {}  # parameter number -> edits in order
        for edit in self.edits:
            if not isinstance(edit, WeightEdit):
                raise TypeError(f"{type(edit).__name__} is not an edit of weights: use WeightMask or WeightDelta")
            edit.check({name: p for name, p in known.items() if p is not None})
            seen: dict[int, str] = {}
            for name in edit.names:
                number = names[name]
                if number in seen:
                    raise ValueError(
                        f"{edit.describe()}: {seen[number]} and {name} are one shared parameter: leave one of them out"
                    )
                seen[number] = name
                self.work.setdefault(number, []).append((edit, name))
        self.slots = {number: slots[number] for number in self.work}

    def put_on(self) -> None:
        """Compute all effective weights, then lay them over the parameters: all or none."""
        grad = torch.is_grad_enabled()
        fresh = []
        for number, todo in self.work.items():
            module, key = self.slots[number][0]
            source = module._parameters[key]
            assert source is not None
            old = self.kept.get(number)
            if grad and source.requires_grad:
                weight = _composed(source, todo)
            elif old is not None and old[0] is source and old[1] == source._version and old[2] == source.data_ptr():
                weight = old[3]
            else:
                weight = self._computed(number, source, todo)
            fresh.append((self.slots[number], source, weight))
        for slots, source, weight in fresh:
            for module, key in slots:
                _place(module, key, weight)
            self.taken.append((slots, source))

    def take_off(self) -> None:
        for slots, source in self.taken:
            for module, key in slots:
                _place(module, key, source)
        self.taken.clear()

    def _computed(self, number: int, source: Tensor, todo: list[tuple[WeightEdit, str]]) -> Tensor:
        """The effective weight without gradient, kept until `source` changes."""
        if source.is_inference():  # it has no version counter to tell whether it changed
            return _composed(source, todo)
        with torch.inference_mode(False), torch.no_grad():
            weight = _composed(source, todo)
        self.kept[number] = (source, source._version, source.data_ptr(), weight)
        return weight


def _composed(weight: Tensor, todo: list[tuple[WeightEdit, str]]) -> Tensor:
    for edit, name in todo:
        weight = edit.effective(name, weight)
    return weight


def _place(module: nn.Module, key: str, weight: Tensor) -> None:
    module._parameters[key] = weight  # type: ignore[assignment]  (not register_parameter: it is not one)
    if isinstance(module, nn.RNNBase):  # computes with a list of its own
        module._flat_weights[module._flat_weights_names.index(key)] = weight  # type: ignore[call-overload]


def _plan(tree: nn.Module, edits: tuple[WeightEdit, ...]) -> _Plan | None:
    """The plan for these very edits on this tree; made at first use, forgotten at the next other one.

    It lives on the tree, so that one Overlay object per pass finds the weights of the pass before.
    """
    plans = [p for p in vars(tree).get(_PLANS, ()) if p.tree is tree]  # a copy of a tree has copied the list too
    known = next((p for p in plans if len(p.edits) == len(edits) and all(map(operator.is_, p.edits, edits))), None)
    plan = _Plan(tree, edits) if known is None and edits else known
    vars(tree)[_PLANS] = [p for p in plans if p.depth and p is not plan] + ([plan] if plan is not None else [])
    return plan


class Overlay:
    """`with Overlay(tree, edits):` the modules of `tree` compute with effective weights; afterwards with their own.

    The Parameter objects themselves are never written to: on leaving, also by an exception, the same objects are back,
    and other trees over them notice nothing. Gradients flow through the effective weights into the Parameters. Without
    gradient the effective weights are kept until a Parameter is changed in place (an optimiser step, `copy_`; not
    through `.data`). Several edits hold in the given order. May be entered again inside itself (no effect) and inside
    another one (its edits then apply to the outer one's weights).
    Raises ValueError for an edit that does not fit the tree.
    """

    def __init__(self, tree: nn.Module, edits: WeightEdit | Iterable[WeightEdit]) -> None:
        self.plan = _plan(tree, (edits,) if isinstance(edits, WeightEdit) else tuple(edits))

    def __enter__(self) -> Overlay:
        if self.plan is not None:
            if not self.plan.depth:
                self.plan.put_on()
            self.plan.depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        if self.plan is not None:
            self.plan.depth -= 1
            if not self.plan.depth:
                self.plan.take_off()


# Training -------------------------------------------------------------------------------------------------------------


@contextmanager
def guard_training(tree: nn.Module, edits: WeightEdit | Iterable[WeightEdit]) -> Iterator[None]:
    """While inside, no optimiser step of any optimiser moves a masked-out weight, nor its moments: bit for bit.

    tree: any module tree over the Parameters that train (another tree over the same Parameters does as well). Their
    masked-out gradients count as zero, so that clipping and norms see the trained entries alone; weight decay does not
    reach them. Moments that are born inside start at zero there. All other entries train. A step that raises half-way
    is undone at masked-out entries on leaving; so is whatever else moved a Parameter that does not require grad (a
    slow critic). Moments whose shape is not the Parameter's (factored ones) are not covered.
    Raises ValueError for an edit that does not fit the tree.
    """
    frozen = _frozen(tree, (edits,) if isinstance(edits, WeightEdit) else tuple(edits))
    still = [_Held(p, mask) for p, mask in frozen.values() if not p.requires_grad]
    pending: dict[int, tuple[list[_Held], set[tuple[int, str]]]] = {}

    def ours(optimiser: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                if id(parameter) in frozen:
                    yield parameter, frozen[id(parameter)][1].to(parameter.device)

    @torch.no_grad()
    def before(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        held, seen = [], set()
        for parameter, mask in ours(optimiser):
            held.append(_Held(parameter, mask))
            if parameter.grad is not None and not parameter.grad.is_sparse:
                parameter.grad.masked_fill_(mask, 0)
            for key, moment in _moments(optimiser, parameter):
                held.append(_Held(moment, mask))
                seen.add((id(parameter), key))
        pending[id(optimiser)] = held, seen

    @torch.no_grad()
    def after(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        held, seen = pending.pop(id(optimiser), ([], set()))
        for item in held:
            item.put_back()
        for parameter, mask in ours(optimiser):
            for key, moment in _moments(optimiser, parameter):
                if (id(parameter), key) not in seen:
                    moment.masked_fill_(mask, 0)

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for item in [*(item for held, _ in pending.values() for item in held), *still]:
            item.put_back()


def _frozen(tree: nn.Module, edits: Sequence[WeightEdit]) -> dict[int, tuple[nn.Parameter, Tensor]]:
    """id of each Parameter with masked-out entries -> it, and which."""
    known = dict(tree.named_parameters(remove_duplicate=False))
    found: dict[int, tuple[nn.Parameter, Tensor]] = {}
    for edit in edits:
        edit.check(tree)
        for name in edit.names:
            mask = edit.frozen(name)
            if mask is not None:
                parameter = known[name]
                mask = mask.to(parameter.device)
                old = found.get(id(parameter))
                found[id(parameter)] = parameter, mask if old is None else mask | old[1]
    return found


def _moments(optimiser: torch.optim.Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    for key, value in optimiser.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
            yield key, value


class _Held:
    """Entries of a tensor as they are now."""

    def __init__(self, tensor: Tensor, mask: Tensor) -> None:
        self.tensor, self.mask, self.values = tensor, mask, tensor.detach().clone()

    @torch.no_grad()
    def put_back(self) -> None:
        self.tensor.copy_(torch.where(self.mask, self.values, self.tensor))
