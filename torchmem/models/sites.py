"""Sites: the address of every value inside an agent, found by running it once and looking."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from torchmem.models.synthetic import empty_sequence
from torchmem.types import Site

ROWS, STEPS = 2, 3  # of the probing pass; their product, 6, tells a flattened (B * T) axis from B and T


def find_sites(agent) -> dict[str, Site]:
    """Every submodule whose output is one tensor, by module path, with axes, sizes and cadence as they come out.

    agent: anything with `spec`, `device`, `initial` and `unroll`. The pass runs on empty observations and changes
    nothing. A module that runs T times per sequence has cadence "step" and axes (B, ...); the others see whole
    sequences, as (B, T, ...) or flattened to (B*T, ...).
    """
    seen: dict[str, list[tuple[int, ...]]] = {}
    handles = [
        module.register_forward_hook(_note(seen, path)) for path, module in agent.named_modules() if path
    ]
    try:
        with torch.no_grad():
            agent.unroll(*empty_sequence(agent.spec, agent.device, ROWS, STEPS), agent.initial(ROWS))
    finally:
        for handle in handles:
            handle.remove()
    sites = {}
    for path, shapes in seen.items():
        site = _site(path, shapes)
        if site is not None:
            sites[path] = site
    return sites


def _note(seen: dict[str, list[tuple[int, ...]]], path: str):
    def hook(module: nn.Module, args, output) -> None:
        if isinstance(output, Tensor):
            seen.setdefault(path, []).append(tuple(output.shape))

    return hook


def _site(path: str, shapes: list[tuple[int, ...]]) -> Site | None:
    shape, calls = shapes[0], len(shapes)
    names = {0: (), 1: ("N",), 2: ("S", "K"), 3: ("H", "W", "C")}
    if calls == STEPS and shape[:1] == (ROWS,):
        lead, cadence = ("B",), "step"
    elif calls == 1 and shape[:2] == (ROWS, STEPS):
        lead, cadence = ("B", "T"), "sequence"
    elif calls == 1 and shape[:1] == (ROWS * STEPS,):
        lead, cadence = ("B*T",), "sequence"
    else:
        return None  # never run while observing, or not a value per row and step
    rest = shape[len(lead) :]
    if len(rest) not in names:
        return None
    return Site(path, path, (*lead, *names[len(rest)]), rest, cadence)


def rename(site: Site, name: str) -> Site:
    """The same place under a canonical name."""
    return dataclasses.replace(site, name=name)
