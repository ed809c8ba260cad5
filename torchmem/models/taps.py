"""Chosen activations handed out by the training loss and by the acting step, also where these are compiled.

`Tapped` holds a second module tree over the same weights with a forward hook on each chosen module. Because the hooks
lie there before anything is compiled, the compiler inlines them: the activations become outputs of the one graph, and
neither the agent nor its plain compiled loss knows of them. Surgery's traces show the same values, for every pass and
with edits; taps are for recording through millions of steps at the speed of training.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchmem.errors import TorchmemError
from torchmem.models.noise import Noise
from torchmem.models.protocol import LossOut
from torchmem.models.twin import twin
from torchmem.types import Site

IMAGINED = "imagined."  # before the name of a site: its values in imagination


class TapError(TorchmemError, ValueError):
    """A site cannot be collected; the message names it and the way out."""


def changed_by_hooks(*modules: nn.Module) -> bool:
    """Whether a hook on one of the modules may change what it hands on; those of `Tapped` only look."""
    return any(not hasattr(hook, "only_reads") for module in modules for hook in module._forward_hooks.values())


class Tapped:
    """An agent's loss and policy that also return the activations of chosen sites, detached.

    sites: names or patterns ("dynamics.*"). With "imagined." in front: the site's values while the loss imagines.
    Make it after the agent's `dtype` and its learner are set: such attributes are copied, weights are shared.
    Raises TapError for a name that the agent does not have.
    """

    def __init__(self, agent: Any, sites: Iterable[str]) -> None:
        self.wanted = chosen(agent.sites, sites)
        self.tree: Any = twin(agent)
        self.calls: dict[str, list[Tensor]] = {}  # module path -> outputs in the order of its calls, of one pass
        for path in sorted({site.path for site in self.wanted.values()}):
            self.tree.get_submodule(path).register_forward_hook(self._hook(path))

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut:
        """The agent's loss, with `taps`: site -> (B, T, ...); imagined sites (B, T, H, ...).

        T are the steps that the losses have (a context step has no entry). Index h of an imagined site is its h-th call
        after the start: of the recurrent state the state after step h + 1, of a head its output at step h.
        Raises TapError where the loss does not run a site on the sequence.
        """
        self._begin()
        out = self.tree.loss(batch, noise)
        out.taps = self._collected(out.losses)
        return out

    def loss_parts(self, batch: Mapping[str, Tensor], noise: Noise) -> tuple:
        """The fields of `loss`, as plain tensors and dictionaries: what `compile` compiles."""
        self._begin()
        parts = self.tree.loss_parts(batch, noise)
        return (*parts, self._collected(parts[1]))

    def policy(
        self, obs: Mapping[str, Tensor], carry: Any, noise: Noise
    ) -> tuple[dict[str, Tensor], Any, dict[str, Tensor], dict[str, Tensor]]:
        """The agent's acting step: actions, carry, latents, and taps: site -> (B, ...).

        Raises TapError where acting does not run a site (a decoder, a critic, anything imagined).
        """
        self._begin()
        actions, carry, latents = self.tree.policy(obs, carry, noise)
        rows, calls = obs["is_first"].shape[0], self._end()
        taps = {}
        for name, site in self.wanted.items():
            found = [] if name.startswith(IMAGINED) else [c for c in calls[site.path] if c.shape == (rows, *site.shape)]
            if not found:
                raise TapError(f"acting does not compute {name}: leave it out, or collect it in the loss or in a trace")
            taps[name] = found[0]
        return actions, carry, latents, taps

    # One pass --------------------------------------------------------------------------------------------------------

    def _hook(self, path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(module: nn.Module, args: Any, output: Tensor) -> None:
            self.calls[path].append(output.detach())

        note.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]
        return note

    def _begin(self) -> None:
        self.calls = {site.path: [] for site in self.wanted.values()}

    def _end(self) -> dict[str, list[Tensor]]:
        calls, self.calls = self.calls, {}  # nothing outlives the pass
        return calls

    def _collected(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        calls = self._end()
        rows = next(iter(losses.values())).shape[0]
        steps = max(value.shape[1] for value in losses.values())  # some losses have no last step
        out = {}
        for name, site in self.wanted.items():
            seen, rest = parted(calls[site.path], site, rows, steps)
            value = imagined(rest, site, rows, steps) if name.startswith(IMAGINED) else seen
            if value is None:
                place = "while imagining" if name.startswith(IMAGINED) else "on the replayed sequence"
                raise TapError(f"the loss does not compute {name} {place}: leave it out of collect, or trace it")
            out[name] = value
        return out


def collecting_loss(agent: Any, sites: Iterable[str]) -> Callable[[Mapping[str, Tensor], Noise], LossOut]:
    """`agent.loss` whose LossOut has `taps`; see `Tapped`."""
    return Tapped(agent, sites).loss


def collecting_policy(agent: Any, sites: Iterable[str]) -> Callable[..., tuple]:
    """`agent.policy` that returns taps as a fourth value; see `Tapped`."""
    return Tapped(agent, sites).policy


def chosen(sites: Mapping[str, Site], names: Iterable[str]) -> dict[str, Site]:
    """The sites that names and patterns mean, in that order, each once: a pattern leaves out second names of a place.

    Raises TapError naming what means nothing.
    """
    if isinstance(names, str):
        raise TapError(f"sites are a list of names, such as [{names!r}]")
    out: dict[str, Site] = {}
    for name in names:
        prefix = IMAGINED if name.startswith(IMAGINED) else ""
        plain = name.removeprefix(prefix)
        found = [plain] if plain in sites else _distinct(sites, sorted(fnmatch.filter(sites, plain)))
        if not found:
            close = difflib.get_close_matches(plain, sites, n=3, cutoff=0.4)
            raise TapError(f"no site {plain!r}; nearest: {', '.join(close) or 'none'} (all: torchmem sites RUN)")
        out |= {prefix + item: sites[item] for item in found}
    return out


def _distinct(sites: Mapping[str, Site], names: list[str]) -> list[str]:
    """One name for each place: its path where that is among them, else the first."""
    by_path: dict[str, str] = {}
    for name in names:
        if name == sites[name].path or sites[name].path not in by_path:
            by_path[sites[name].path] = name
    return list(by_path.values())


def parted(calls: list[Tensor], site: Site, rows: int, steps: int) -> tuple[Tensor | None, list[Tensor]]:
    """What a module saw along the sequence, (B, T, *shape), and its other outputs. The sequence comes first."""
    if site.cadence == "step" and calls and calls[0].shape == (rows, steps, *site.shape):
        return calls[0], calls[1:]  # the loss runs in parallel what a trace runs step by step
    if site.cadence == "step":
        seen, rest = calls[:steps], calls[steps:]
        if len(seen) < steps or any(value.shape != (rows, *site.shape) for value in seen):
            return None, calls
        return torch.stack(seen, 1), rest
    flat = site.axes[0] == "B*T"
    lead = (rows * steps,) if flat else (rows, steps)
    for i, value in enumerate(calls):
        if value.shape == (*lead, *site.shape):
            return value.unflatten(0, (rows, steps)) if flat else value, [*calls[:i], *calls[i + 1 :]]
    return None, calls


def imagined(calls: list[Tensor], site: Site, rows: int, steps: int) -> Tensor | None:
    """What a module saw while imagining from each of B * T states, (B, T, H, *shape)."""
    single = [value for value in calls if value.shape == (rows * steps, *site.shape)]
    whole = [v for v in calls if v.dim() == len(site.shape) + 2 and v.shape == (rows * steps, v.shape[1], *site.shape)]
    if not single and not whole:
        return None
    found = torch.stack(single, 1) if single else whole[0]
    return found.unflatten(0, (rows, steps))
