"""Rollouts of a frozen agent in its simulator, kept as a Recording: what real play can be asked, they can be asked too.

One sample is one episode of the recording: H steps from one start. Covariates as `torchmem record` writes them (obs.*,
action, value, logits.*), with reward and `done` (the probability of the end) as the simulator predicts them, and the
episode and step that an informed start was made from. Sites: `memory`, what the agent remembers; `world`, the
simulator's state, z included; `latent`, the start, the same at every step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis._probe_data import where_mask
from torchmem.files import atomic_write
from torchmem.models.simulator.files import load_simulator, weights_of
from torchmem.models.simulator.observations import to_world
from torchmem.models.simulator.protocol import RolloutNoise, Start
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.models.simulator.window import cut_window
from torchmem.recording import Recording, RecordingWriter
from torchmem.result import Provenance
from torchmem.studies.direction_edits import in_simulator
from torchmem.studies.fidelity import require_fidelity
from torchmem.surgery.edits import SiteEdit
from torchmem.training.recorded import check_recording, read_rows, spread_places, windows_at
from torchmem.video import gif_bytes

INITS = ("real", "random", "interpolate")
log = logging.getLogger("torchmem")


def simulate(
    simulator: str | Path,
    out: str | Path,
    *,
    init: str = "real",
    recording: str | Path | None = None,
    samples: int = 16,
    horizon: int = 16,
    actions: Sequence[int] | None = None,
    agent: Any = None,
    guess: bool = False,
    world_noise: bool = False,
    action_noise: bool = False,
    sees: str = "frames",
    edits: Sequence[SiteEdit] = (),
    seed: int = 0,
    batch: int = 32,
    device: str = "cpu",
    allow: bool = False,
) -> Recording:
    """Simulate `samples` rollouts of `horizon` steps and return what was recorded in `out`, a new folder.

    init: "real" starts from steps drawn from `recording`; "random" from random points of the latent space;
    "interpolate" goes in `samples` equal steps along the great circle (sphere) or line between two real starts.
    actions: horizon classes to take in place of the agent's own, the same in every sample. agent: another one of the
    same world. guess: let informed starts, too, take the agent's memory as the simulator guesses it, as the original
    does. world_noise, action_noise: sample; default, the modes: then nothing is random but the starts. sees: see
    `rollout`. edits: of the site `memory` (direction_edits.py), before the agent's heads read it; without them the same
    call gives the matched rollouts. allow: go on with a simulator that failed its gate or was never measured.

    The same arguments give the same recording. Raises FidelityError, ValueError for what does not fit together,
    FileExistsError where `out` holds something.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}; got {init!r}")
    if samples < 1 or horizon < 1:
        raise ValueError(f"samples and horizon must be at least 1, got {samples} and {horizon}")
    if init != "random" and recording is None:
        raise ValueError(f"init={init} starts from real steps: give a recording")
    world, loop, home = load_simulator(simulator, agent, device)
    report = require_fidelity(simulator, allow)
    latents = hasattr(world, "from_latent")
    if (init != "real" or guess) and not latents:
        raise ValueError(f"{simulator} is an agent's own world model, whose starts are no points of a space: init=real")
    wrong = [one.site for one in edits if one.site != "memory"]
    if wrong:
        raise ValueError(f"in a simulator the agent is edited at the site memory, not at {wrong[0]}")
    given = _actions(loop, actions, horizon)
    starts = Starts(world, loop, init, recording, samples, guess, seed, device)
    how = {
        "init": init, "samples": samples, "horizon": horizon, "actions": None if actions is None else list(actions),
        "guess": guess, "world_noise": world_noise, "action_noise": action_noise, "sees": sees, "seed": seed,
        "simulator": str(simulator), "recording": None if recording is None else str(recording),
    }  # fmt: skip
    caveat = "simulated" if report is None or report.passed else "simulated, by a simulator that failed its gate"
    provenance = Provenance.here(
        checkpoint=str(home), weights=weights_of(home), config=how, seeds={"simulate": seed},
        edits=tuple(one.describe() for one in edits),
        caveats=(caveat if report else "simulated, fidelity never measured",),
    )  # fmt: skip
    units = {"reward": "reward", "value": "discounted return", "done": "probability"}
    with RecordingWriter(out, control_hz=world.spec.control_hz, units=units, plan=how, provenance=provenance) as writer:
        for begin in range(0, samples, batch):
            rows = range(begin, min(begin + batch, samples))
            generator = torch.Generator(device).manual_seed(seed * 1009 + begin)
            noise = rollout_noise(world, loop, len(rows), horizon, generator, world=world_noise, actions=action_noise)
            start, latent, origin = starts.of(rows, noise)
            taken = None if given is None else {k: v.expand(len(rows), -1).to(device) for k, v in given.items()}
            edit = in_simulator(edits, loop.agent) if edits else None  # counts steps: a fresh one for each batch
            with torch.no_grad():
                found = rollout(
                    world, loop, start, horizon, noise, actions=taken, sees=sees, edit=edit, early=bool(edits)
                )
            _write(writer, world, found, latent, origin)
        writer.finish()
    return Recording(out)


class Starts:
    """The starts of all samples, batch by batch. where: (steps,) bool of the recording, real starts are among these."""

    def __init__(
        self, world: Any, loop: Any, init: str, recording: Any, samples: int, guess: bool, seed: int, device: str,
        where: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        if where is not None and init != "real":
            raise ValueError(f"where chooses among real steps: take init=real, not {init}")
        self.world, self.init, self.guess = world, init, guess
        generator = torch.Generator(device).manual_seed(seed * 1009 + 500)
        self.latent: Tensor | None = None
        self.places: list[tuple[int, int]] = []
        self.episodes: list[int] = []
        if init == "random":
            self.latent = world.random_latent(samples, generator)
            return
        rec = Recording(recording)
        check_recording(rec, world.spec)
        rng = np.random.default_rng(seed)
        if where is not None:
            steps = where_mask(rec, where) & (rec.step + 1 < rec.episodes["length"][rec.episode])
            rows = np.flatnonzero(steps)
            if not len(rows):
                raise ValueError("where leaves no step of the recording to begin from")
            rows = rng.choice(rows, samples, replace=samples > len(rows))
            self.episodes = rec.episode[rows].tolist()
            self.rows = list(read_rows(rec, loop, self.episodes, seed))
            self.places = [(i, int(step)) for i, step in enumerate(rec.step[rows])]
            return
        wanted = samples if init == "real" else 2
        chosen = rng.choice(len(rec.episodes), wanted, replace=wanted > len(rec.episodes))
        self.episodes = [int(e) for e in chosen]
        self.rows = list(read_rows(rec, loop, self.episodes, seed))
        self.places = [spread_places([rows], 1, 1, seed + i)[0] for i, rows in enumerate(self.rows)]
        self.places = [(i, first) for i, (_, first) in enumerate(self.places)]
        if init == "interpolate":
            ends = world.encode(self._context([0, 1]))
            self.latent = between(world, ends[:1], ends[1:], samples)

    def _context(self, rows: Sequence[int]) -> Any:
        places = [self.places[row] for row in rows]
        batch = windows_at(self.rows, places, self.world.context, 1)
        batch = {key: value.to(self.world.device) for key, value in batch.items()}
        return cut_window(batch, self.world.spec, self.world.context).context

    @torch.no_grad()
    def of(self, rows: range, noise: RolloutNoise) -> tuple[Start, Tensor | None, np.ndarray]:
        """Starts, latents (B, L) if any, and (B, 2) the recorded episode and step of each, -1 where there is none."""
        nowhere = np.full((len(rows), 2), -1)
        if self.latent is not None:
            latent = self.latent[rows.start : rows.stop].detach()
            return self.world.from_latent(latent, noise.start), latent, nowhere
        context = self._context(list(rows))
        origin = np.array([(self.episodes[row], self.places[row][1]) for row in rows])
        if not hasattr(self.world, "encode"):
            return self.world.begin(context, noise.start), None, origin
        latent = self.world.encode(context)
        if self.guess:
            return self.world.from_latent(latent, noise.start), latent, origin
        return self.world.begin(context, noise.start), latent, origin


@torch.no_grad()
def between(world: Any, a: Tensor, b: Tensor, count: int) -> Tensor:
    """`count` latents (count, L) from a to b (1, L), ends included: equal angles on a sphere, else equal steps."""
    share = torch.linspace(0, 1, count, device=a.device).unsqueeze(1)
    straight = a + share * (b - a)
    if not torch.allclose(world.project(2 * a), a, atol=1e-5):
        return straight
    angle = torch.arccos((a * b).sum(-1, keepdim=True).clamp(-1, 1))
    if float(angle) < 1e-4:
        return world.project(straight)
    return world.project((torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle))


def _actions(loop: Any, actions: Sequence[int] | None, horizon: int) -> Mapping[str, Tensor] | None:
    if actions is None:
        return None
    if len(loop.spaces) != 1 or not all(s.discrete and not s.shape for s in loop.spaces.values()):
        raise ValueError("actions can be given for a world with one choice per step only")
    ((key, space),) = loop.spaces.items()
    wrong = [a for a in actions if not 0 <= a < (space.classes or 2)]
    if wrong:
        raise ValueError(f"action {wrong[0]} is not among the {space.classes} of this world")
    if len(actions) not in (1, horizon):
        raise ValueError(f"{len(actions)} actions for horizon={horizon}: give one (repeated) or {horizon}")
    filled = list(actions) * (horizon if len(actions) == 1 else 1)
    return {key: torch.tensor([filled], dtype=getattr(torch, space.dtype))}


def _write(writer: RecordingWriter, world: Any, found: Any, latent: Tensor | None, origin: np.ndarray) -> None:
    def plain(value: Tensor) -> np.ndarray:
        return value.detach().cpu().numpy()

    steps, rows = len(found), len(origin)
    flags = np.zeros((rows, steps), bool)
    first, last = flags.copy(), flags.copy()
    first[:, 0], last[:, -1] = True, True
    covariates = {f"obs.{key}": plain(value) for key, value in to_world(found.obs, world.spec.obs).items()}
    covariates |= {"reward": plain(found.reward).astype(np.float32), "done": plain(found.done).astype(np.float32)}
    covariates |= {"is_first": first, "is_last": last, "is_terminal": flags, "value": plain(found.value)}
    covariates |= {key: plain(value) for key, value in {**found.action, **found.params}.items()}
    covariates |= {
        name: np.repeat(origin[:, i : i + 1], steps, 1) for i, name in enumerate(("from_episode", "from_step"))
    }
    activations = {"memory": plain(found.memory), "world": plain(found.state)}
    if latent is not None:
        activations["latent"] = np.repeat(plain(latent)[:, None], steps, 1)
    for row in range(rows):
        writer.append({k: v[row] for k, v in activations.items()}, {k: v[row] for k, v in covariates.items()})


def film(rec: Recording, out: str | Path, most: int = 16) -> Path:
    """The first rollouts of a simulated recording beside each other as a GIF. Raises ValueError without an image."""
    keys = [k for k in rec.covariates if k.startswith("obs.") and rec.covariates[k].ndim == 4
            and rec.covariates[k].shape[-1] == 3]  # fmt: skip
    if not keys:
        raise ValueError(f"{rec.path} shows no colour image, so there is no film to make")
    frames = [rec.covariates[keys[0]][rec.rows(i)] for i in range(min(most, len(rec.episodes)))]
    return atomic_write(Path(out), gif_bytes(np.concatenate(frames, 2), rec.control_hz))
