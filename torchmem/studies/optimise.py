"""optimise_latent: which start of a simulator makes the agent value, expect, do or think something the most?

Spec simulator.md 5.12 and R13. What is found is told beside as many random starts as rollouts were made, and beside
encoded real ones: a maximum that a random start reaches, or that no real start comes near, shows little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.find_directions import DirectionsResult
from torchmem.models.simulator.files import load_simulator, weights_of
from torchmem.models.simulator.observations import to_world
from torchmem.models.simulator.protocol import Paths, Rollout
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.result import Provenance
from torchmem.studies.climb import climb, crowding
from torchmem.studies.fidelity import require_fidelity
from torchmem.studies.latent_adam import is_sphere
from torchmem.studies.optimise_result import OptimiseResult
from torchmem.studies.realism import FromData, FromPrior
from torchmem.studies.scalars import read_scalars
from torchmem.studies.simulate import Starts

Target = Callable[[Rollout, int], Tensor]  # (rollout, step) -> (B,)


def optimise_latent(
    simulator: str | Path,
    recording: str | Path | None = None,
    *,
    target: str | Target = "value",
    minimise: bool = False,
    at: int | Sequence[int] = 4,
    init: str = "random",
    restarts: int = 8,
    steps: int = 100,
    rate: float = 0.1,
    realism: float = 0.0,
    realism_by: str = "auto",
    diversity: float = 0.0,
    directions: DirectionsResult | None = None,
    horizon: int | None = None,
    random: int | None = None,
    encoded: int = 256,
    through: str = "probs",
    agent: Any = None,
    batch: int = 64,
    seed: int = 0,
    device: str = "cpu",
    allow: bool = False,
) -> OptimiseResult:
    """Raise (or lower) a target at a step, or its mean over several, from `restarts` starts at once.

    target: a name (scalars.py) or a function (rollout, step) -> (B,). init: random starts, or "real", encoded ones.
    rate: of Adam, on a sphere radians per step. realism: weight of a penalty, in deviations of the target over random
    starts; by "data" (distance to encoded real starts, squared; needs `recording`) or "prior" (likelihood of a VAE's
    start); "auto": data where a recording is given. diversity: weight of how crowded the restarts are, likewise.
    random: starts of the control, None as many as rollouts are made. encoded: real starts, one per episode, at most.
    horizon: steps of the clips. Modes throughout, so that a start decides everything.

    Raises FidelityError; ValueError for an agent's own world model, which has no space of starts, and for what does
    not fit together.
    """
    steps_at = (at,) if isinstance(at, int) else tuple(at)
    if not steps_at or min(steps_at) < 0 or restarts < 1 or steps < 1 or rate <= 0:
        raise ValueError(f"at={at}, restarts={restarts}, steps={steps}, rate={rate}: steps from 0 on, the rest above 0")
    if realism < 0 or diversity < 0 or init not in ("random", "real") or realism_by not in ("auto", "data", "prior"):
        raise ValueError(
            f"realism={realism} and diversity={diversity} must not be negative, init={init!r} must be random or real, "
            f"realism_by={realism_by!r} auto, data or prior"
        )
    world, loop, home = load_simulator(simulator, agent, device)
    report = require_fidelity(simulator, allow)
    if not hasattr(world, "from_latent"):
        raise ValueError(
            f"{simulator} is an agent's own world model, whose starts are no points of a space that could be searched: "
            f"train a simulator around it (torchmem simulator train)"
        )
    if init == "real" and recording is None:
        raise ValueError("init=real begins from real steps: give a recording")
    name = target if isinstance(target, str) else getattr(target, "__name__", "target")
    scalar = next(iter(read_scalars([target], loop, directions).values())) if isinstance(target, str) else target
    if isinstance(target, str) and target == "directions":
        raise ValueError("target=directions is many: take direction:K")
    length = max(*steps_at, -1) + 1 if horizon is None else horizon
    if length <= max(steps_at):
        raise ValueError(f"step {max(steps_at)} is not within a horizon of {length}")
    sign = -1.0 if minimise else 1.0

    def told(latent: Tensor, horizon: int = max(steps_at) + 1) -> tuple[Tensor, Rollout]:
        play = rollout(world, loop, world.from_latent(latent), horizon, paths=Paths(through=through))
        return torch.stack([scalar(play, step) for step in steps_at]).mean(0), play

    def values(latents: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([told(part)[0] for part in latents.split(batch)]) if len(latents) else latents[:, 0]

    generator = torch.Generator(device).manual_seed(seed)
    control = world.random_latent(restarts * (steps + 1) if random is None else random, generator)
    real, origin = _encoded(world, loop, recording, encoded, seed, device, batch)
    sphere = is_sphere(world, world.random_latent(2, generator))
    judge = _judge(world, real, control, sphere, realism, realism_by)
    by_chance, by_data = values(control), values(real)
    known = by_chance[torch.isfinite(by_chance)]
    if len(known) < 2:
        raise ValueError(f"{name} is no finite number at random starts: take another target or step")
    spread = known.std() if float(known.std()) > 1e-9 else torch.ones((), device=known.device)
    width = torch.cdist(control[:256], control[:256]).median() / 2

    def score(latent: Tensor) -> tuple[Tensor, Tensor]:
        found = told(latent)[0]
        total = sign * (found - known.mean()) / spread
        if realism:
            assert judge is not None
            total = total - realism * judge.penalty(latent)
        return (total - diversity * crowding(latent, width) if diversity else total), found

    if init == "real":
        begin = real[torch.randint(len(real), (restarts,), generator=generator, device=real.device)]
    else:
        begin = world.random_latent(restarts, generator)
    found = climb(score, begin, sphere, steps, rate)
    order = (sign * torch.nan_to_num(found.told, nan=-sign * torch.inf)).argsort(descending=True)
    latent = found.latent[order]
    with torch.no_grad():
        play = told(latent, length)[1]
        far = judge.distance if judge is not None else None
        nearest = FromData.nearest(judge, latent).cpu().numpy() if isinstance(judge, FromData) else None
    shown = to_world(play.obs, world.spec.obs)
    image = next((key for key, s in world.spec.obs.items() if s.image and s.shape[-1] == 3), None)
    config = {
        "target": name, "minimise": minimise, "at": list(steps_at), "init": init, "restarts": restarts, "steps": steps,
        "rate": rate, "realism": realism, "realism_by": realism_by, "diversity": diversity, "through": through,
        "seed": seed, "recording": None if recording is None else str(recording),
    }  # fmt: skip
    caveats = () if report is not None and report.passed else ("of a simulator that did not pass its gate",)
    none = torch.zeros(0)
    return OptimiseResult(
        simulator=str(simulator), target=name, sign=sign, at=steps_at, latent=plain(latent), begin=plain(begin[order]),
        trace=plain(found.trace[:, order]), best_step=plain(found.at[order.cpu()]), achieved=plain(found.told[order]),
        random=plain(by_chance), data=plain(by_data), realism=plain(far(latent) if far else none),
        random_realism=plain(far(control) if far else none),
        data_realism=plain(judge.others() if isinstance(judge, FromData) else far(real) if far else none),
        realism_unit=judge.unit if judge is not None else "", still=found.still, broken=found.broken,
        nearest=np.full((restarts, 2), -1) if nearest is None else origin[nearest],
        frames=plain(shown[image]) if image else np.zeros((restarts, 0), np.uint8),
        action={key: plain(value) for key, value in play.action.items()}, agent_value=plain(play.value),
        control_hz=world.spec.control_hz, settings=config,
        provenance=Provenance.here(checkpoint=str(home), weights=weights_of(home), config=config,
                                   seeds={"optimise": seed}, caveats=caveats),
    )  # fmt: skip


def _judge(
    world: Any, real: Tensor, control: Tensor, sphere: bool, weight: float, by: str
) -> FromData | FromPrior | None:
    """What tells how real a start is; None where nothing can and nobody asked."""
    if by == "prior" and sphere:
        raise ValueError("the prior of a sphere is the same everywhere: take realism_by=data and give a recording")
    if by == "data" or (by == "auto" and len(real)):
        return FromData.of(real, control)
    if not sphere:
        return FromPrior(world.latent_size)
    if weight:
        raise ValueError("realism on a sphere is told by the data: give a recording")
    return None


@torch.no_grad()
def _encoded(
    world: Any, loop: Any, recording: str | Path | None, most: int, seed: int, device: str, batch: int
) -> tuple[Tensor, np.ndarray]:
    """Encoded real starts (M, L), and (M, 2) the recorded episode and step of each."""
    if recording is None:
        return torch.zeros((0, world.latent_size), device=world.device), np.zeros((0, 2), np.int64)
    from torchmem.recording import Recording

    count = min(most, len(Recording(recording).episodes))
    starts = Starts(world, loop, "real", recording, count, True, seed, device)
    parts = list(_batches(starts, world, loop, count, batch))
    return torch.cat([latent for latent, _ in parts]), np.concatenate([origin for _, origin in parts])


def _batches(starts: Starts, world: Any, loop: Any, count: int, batch: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    for begin in range(0, count, batch):
        rows = range(begin, min(begin + batch, count))
        noise = rollout_noise(world, loop, len(rows), 1, None, world=False, actions=False)
        _, latent, origin = starts.of(rows, noise)
        assert latent is not None  # a LatentSimulator's
        yield latent, origin


def plain(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
