"""measure_saliency: on what, and on what earlier step, does each thing that an agent does in a simulator hang?

Of a trained simulator or of an agent's own world model alike. Spec simulator.md 5.6 and R9: true scale, one rollout for
all scalars, ways apart, checked against finite differences in every report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.find_directions import DirectionsResult
from torchmem.models.simulator.files import load_simulator, weights_of
from torchmem.models.simulator.observations import to_world
from torchmem.models.simulator.packing import map_carry
from torchmem.models.simulator.protocol import Start
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.result import Provenance
from torchmem.studies.averaged_slopes import integrated, smoothed
from torchmem.studies.fidelity import require_fidelity
from torchmem.studies.saliency_result import SaliencyResult
from torchmem.studies.scalars import read_scalars
from torchmem.studies.simulate import Starts
from torchmem.studies.slopes import Scalar, Setting, memory_field, slopes


def measure_saliency(
    simulator: str | Path,
    recording: str | Path | None = None,
    *,
    scalars: Sequence[str] | Mapping[str, Scalar] = ("value", "chosen"),
    at: int = 4,
    wrt: Sequence[str] | None = None,
    ways: Sequence[str] = ("total", "internal"),
    directions: DirectionsResult | None = None,
    init: str = "real",
    guess: bool = False,
    samples: int = 16,
    horizon: int | None = None,
    copies: int = 1,
    noise: float = 0.1,
    points: int = 0,
    through: str = "probs",
    sees: str = "frames",
    world_noise: bool = False,
    action_noise: bool = False,
    where: np.ndarray | None = None,
    agent: Any = None,
    batch: int = 32,
    seed: int = 0,
    device: str = "cpu",
    allow: bool = False,
) -> SaliencyResult:
    """Gradients of every scalar at step `at` by every node of `wrt` at every step of `samples` rollouts.

    scalars: names (scalars.py), or functions (rollout, step) -> (B,) by name. wrt: nodes (slopes.py); default: memory,
    world and what is shown. ways: total, internal, external. directions: for scalars of that kind; gradients by memory
    are then told along them too. init, guess, recording, world_noise, action_noise, sees: as for `simulate`. horizon:
    steps kept, default up to `at`. where: (steps,) bool of the recording: real starts are among these, as those of a
    behaviour (`BehavioursResult.mask`). copies, noise: SmoothGrad. points: of integrated gradients, 0: none.

    Raises FidelityError, ValueError for what does not fit together.
    """
    world, loop, home = load_simulator(simulator, agent, device)
    report = require_fidelity(simulator, allow)
    latents = hasattr(world, "from_latent")
    if (init != "real" or guess) and not latents:
        raise ValueError(f"{simulator} is an agent's own world model, whose starts are no points of a space: init=real")
    if init != "random" and recording is None:
        raise ValueError(f"init={init} starts from real steps: give a recording")
    if isinstance(scalars, Mapping):
        asked: dict[str, Scalar] = dict(scalars)
    else:
        asked = read_scalars(scalars, loop, directions)
    wrt = list(wrt or ["memory", "world", *(f"obs.{key}" for key in world.spec.obs)])
    steps = at + 1 if horizon is None else horizon
    starts = Starts(world, loop, init, recording, samples, guess, seed, device, where)
    parts: list[dict[str, np.ndarray]] = []
    for begin in range(0, samples, batch):
        rows = range(begin, min(begin + batch, samples))
        generator = torch.Generator(device).manual_seed(seed * 1009 + begin)
        drawn = rollout_noise(world, loop, len(rows), steps, generator, world=world_noise, actions=action_noise)
        start, latent, origin = starts.of(rows, drawn)
        by_latent = latent is not None and (init != "real" or guess)
        begins: Any = latent if by_latent else start
        how = Setting(noise=drawn, through=through, sees=sees, horizon=steps)
        given = (world, loop, begins, list(asked.values()), at)
        if copies > 1:
            found = smoothed(*given, wrt, ways, how, copies=copies, noise=noise, generator=generator)
            play = rollout_of(world, loop, start, steps, how)
        else:
            found = slopes(*given, wrt, ways, how)
            play = found.play
        one = {"value": plain(found.values), "agent_value": plain(play.value)[None], "origin": origin[None]}
        for way, nodes in found.by.items():
            one |= {f"slope.{way}.{name}": _small(grad, name, world.spec.obs) for name, grad in nodes.items()}
            if directions is not None and directions.site == "memory" and "memory" in nodes:
                one[f"slope.{way}.directions"] = directions.push(plain(nodes["memory"])).astype(np.float32)
        shown = to_world(play.obs, world.spec.obs)
        image = next((key for key, s in world.spec.obs.items() if s.image and s.shape[-1] == 3), None)
        one["frames"] = plain(shown[image])[None] if image else np.zeros((1, len(rows), 0), np.uint8)
        one |= {f"action.{key}": plain(value)[None] for key, value in play.action.items()}
        if points:
            sums = integrated(*given, how, points=points)
            one |= {f"integrated.{name}": _small(v, name, world.spec.obs, total=True) for name, v in sums.by.items()}
            one["gap"] = plain(sums.gap)
        if not parts:
            check = differences(world, loop, start, list(asked.values()), at, how, generator)
        parts.append(one)
    whole = {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}

    def under(prefix: str) -> dict[str, np.ndarray]:
        return {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}

    config = {"at": at, "init": init, "samples": samples, "copies": copies, "noise": noise, "points": points,
              "through": through, "sees": sees, "seed": seed, "recording": str(recording),
              "where": None if where is None else int(where.sum())}  # fmt: skip
    caveats = () if report is not None and report.passed else ("of a simulator that did not pass its gate",)
    return SaliencyResult(
        simulator=str(simulator), scalars=tuple(asked), at=at, slopes=under("slope."), value=whole["value"],
        frames=whole["frames"][0], action={k: v[0] for k, v in under("action.").items()},
        agent_value=whole["agent_value"][0], origin=whole["origin"][0], check=check,
        integrated=under("integrated."), gap=whole.get("gap", np.zeros((0, 0))), settings=config,
        provenance=Provenance.here(checkpoint=str(home), weights=weights_of(home), config=config,
                                   seeds={"saliency": seed}, caveats=caveats),
    )  # fmt: skip


def rollout_of(world: Any, loop: Any, start: Start, steps: int, how: Setting) -> Any:
    with torch.no_grad():
        return rollout(world, loop, start, steps, how.noise, actions=how.actions, sees=how.sees)


def differences(
    world: Any, loop: Any, start: Start, scalars: Sequence[Scalar], at: int, how: Setting,
    generator: torch.Generator | None = None, size: float = 1e-2,
) -> np.ndarray:  # fmt: skip
    """(K, 2): slope of the sum over samples along one random move of the agent's first memory, by finite differences
    and by the gradient. Discrete actions are held on both sides. size: of the move, in root mean squares of memory."""
    field = memory_field(loop.agent)
    steps = at + 1
    plain_play = rollout_of(world, loop, start, steps, how)
    held = dict(plain_play.action) if any(s.discrete for s in loop.spaces.values()) else how.actions
    kept = Setting(noise=how.noise, actions=held, through=how.through, sees=how.sees, horizon=steps)
    here = getattr(start.agent, field).detach()
    way = torch.randn(here.shape, generator=generator, dtype=here.dtype, device=here.device)
    way = way * here.pow(2).mean().sqrt().clamp(min=1e-3)

    def at_move(move: float) -> tuple[Start, Tensor]:
        agent = map_carry(torch.Tensor.detach, start.agent)._replace(**{field: here + move * way})
        moved = Start(start.world, agent, start.is_first)
        play = rollout_of(world, loop, moved, steps, kept)
        return moved, torch.stack([scalar(play, at).double().sum() for scalar in scalars])

    slope = (at_move(size)[1] - at_move(-size)[1]) / (2 * size)
    share = torch.zeros((), dtype=here.dtype, device=here.device, requires_grad=True)
    with torch.enable_grad():
        agent = map_carry(torch.Tensor.detach, start.agent)._replace(**{field: here + share * way})
        play = rollout(
            world, loop, Start(start.world, agent, start.is_first), steps, kept.noise, actions=held, sees=how.sees
        )
        outs = [scalar(play, at).sum() for scalar in scalars]
        found = [
            torch.autograd.grad(out, share, retain_graph=True, allow_unused=True)[0] if out.requires_grad else None
            for out in outs
        ]
    grads = [0.0 if g is None else float(g) for g in found]
    return np.stack([slope.cpu().numpy(), np.array(grads)], 1)


def plain(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _small(grad: Tensor, name: str, spaces: Mapping[str, Any], total: bool = False) -> np.ndarray:
    """float32; images without their channels: averaged, or summed."""
    key = name.removeprefix("obs.")
    if name.startswith("obs.") and key in spaces and spaces[key].image:
        grad = grad.sum(-1) if total else grad.mean(-1)
    return plain(grad.float())
