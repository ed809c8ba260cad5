"""From recorded steps to pieces of a DreamBatch: begins dreams as the plan says, imagines, keeps what sites held."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.decode_dreams import AWAKE, DreamBatch
from torchmem.studies.crafter_bar import VITALS, Bar, changed, draw_vitals
from torchmem.studies.dream_seeds import SEEDS, encode, seeded
from torchmem.studies.dream_tracks import DreamError, choose_starts, direct, observe, read_steps, watching
from torchmem.surgery.record import weights_hash

OTHER = "other actions"  # as A, under the recorded actions of another episode
CONDITIONS = (*SEEDS, OTHER)
BEFORE, WAKE = 16, 2000  # steps of the past kept for figures; waking states kept
log = logging.getLogger("torchmem")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is dreamed. See `dreams.dream_batches`."""

    sites: tuple[str, ...]
    target: str
    warmup: int | None
    horizon: int
    actions: str
    copies: int
    conditions: tuple[str, ...]
    null: str
    vitals: str
    vitals_from: str
    modes: bool
    seed: int

    @property
    def dreams(self) -> list[tuple[str, int]]:
        """(condition, copy) of the dreams from one start."""
        return [(name, copy) for name in self.conditions for copy in range(self.copies)]


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows of one condition and copy: site -> (n, H + 1, units), action key -> (n, H, ...)."""

    condition: int
    copy: int
    states: dict[str, np.ndarray]
    taken: dict[str, np.ndarray]


class Source:
    """Everything that was observed, once; `piece` dreams from some of the starts.

    The states along the real futures are observed in the same pass as those where dreams begin, which cannot know of
    them: a state depends on earlier steps alone.
    """

    def __init__(self, model: Any, recording: Any, plan: Plan, count: int, stride: int) -> None:
        self.model, self.recording, self.plan, self.stride = model, recording, plan, stride
        rng = np.random.default_rng(plan.seed)
        begun = self.begun = choose_starts(recording, plan.warmup, plan.horizon, count, stride, rng)
        self.future = begun.row[:, None] + np.arange(plan.horizon + 1)
        self.episode = recording.episode[begun.row]
        self.valid = self.future < recording.episodes["stop"][self.episode][:, None]
        asked = self.future[self.valid]
        track = np.broadcast_to(begun.track[:, None], self.future.shape)[self.valid]
        self.seen = observe(model, recording, begun, asked, track, plan.sites, seed=plan.seed,
                            modes=plan.modes)  # fmt: skip
        self.at = np.cumsum(self.valid.sum(1)) - self.valid.sum(1)  # where each start's own state is among those seen
        kept = np.sort(rng.permutation(len(asked))[:WAKE])
        self.wake = _pick(self.seen.states, kept)
        self.wake_sites = {name: self.seen.sites[name][kept] for name in plan.sites}
        self.wake_episode = recording.episode[asked[kept]]
        self.bar = Bar.of(recording) if "A'" in plan.conditions else None
        self.hungry = None
        if "A'" in plan.conditions and plan.vitals_from == "warmup":
            self.hungry = observe(model, recording, begun, begun.row, begun.track, plan.sites, seed=plan.seed,
                                  modes=plan.modes, alter=self._other_vitals)  # fmt: skip
        self.donors = self._donors(rng) if OTHER in plan.conditions else None
        self.position = np.asarray(recording.covariates[plan.target][:], np.float64)
        self.provenance = self._provenance()

    def piece(self, part: np.ndarray, number: int) -> DreamBatch:
        """All dreams of the starts `part` (indices); number: of the piece, decides its noise."""
        plan, begun = self.plan, self.begun
        blocks = [self._dream(part, name, copy, number) for name, copy in plan.dreams]
        blocks.append(self._awake(part))
        each = np.tile(part, len(blocks))
        future = np.minimum(self.future[each], self.recording.steps - 1)
        past = begun.row[each][:, None] + np.arange(-BEFORE + 1, 1)
        known = past >= begun.first[begun.track[each]][:, None]
        return DreamBatch(
            target=plan.target, unit=self.recording.units.get(plan.target, ""), actions=plan.actions,
            conditions=(*plan.conditions, AWAKE), condition=np.repeat([b.condition for b in blocks], len(part)),
            copy=np.repeat([b.copy for b in blocks], len(part)), start=each, episode=self.episode[each],
            step=self.recording.step[begun.row[each]], warmup=begun.warmup[each],
            states={name: np.concatenate([b.states[name] for b in blocks]) for name in plan.sites},
            taken={key: np.concatenate([b.taken[key] for b in blocks]) for key in blocks[0].taken},
            real=np.where(self.valid[each][..., None], self.position[future], np.nan),
            before=np.where(known[..., None], self.position[np.maximum(past, 0)], np.nan),
            wake=self.wake_sites, wake_episode=self.wake_episode,
            settings={"starts": len(begun.row), "stride": self.stride, **{name: getattr(plan, name) for name in
                      ("warmup", "copies", "null", "vitals", "vitals_from", "modes", "seed")}},
            provenance=self.provenance,
        )  # fmt: skip

    def _dream(self, part: np.ndarray, name: str, copy: int, number: int) -> Block:
        plan = self.plan
        key = [plan.seed, number, CONDITIONS.index(name), copy]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        begin, held = _pick(self.seen.states, self.at[part]), {n: v[self.at[part]] for n, v in self.seen.sites.items()}
        if name == "A'" and self.hungry is not None:
            begin, held = _pick(self.hungry.states, part), {n: v[part] for n, v in self.hungry.sites.items()}
        elif name not in ("A", OTHER):
            generator = torch.Generator(self.model.agent.device).manual_seed(seed)
            with torch.no_grad():
                tokens = self._tokens(self.begun.row[part], name)
                begin = seeded(self.model.agent, name, begin, tokens, self.wake, plan.null, generator, plan.modes)
            held = {}
        actions = None
        if plan.actions == "replayed":
            from_ = part if name != OTHER or self.donors is None else self.donors[part]
            actions = self._recorded_actions(self.begun.row[from_])
        states, taken = self._imagine(begin, actions, seed >> 1)
        for site, values in held.items():
            states[site][:, 0] = values
        return Block(plan.conditions.index(name), copy, states, taken)

    def _imagine(
        self, begin: Any, actions: Mapping[str, Tensor] | None, seed: int
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Sites (n, H + 1, units) and actions (n, H, ...)."""
        count, steps = len(begin.deter), self.plan.horizon
        with watching(self.model, self.plan.sites) as calls:
            noise = "mode" if self.plan.modes else None
            out = self.model.imagine(begin, steps, seed=seed, actions=actions, noise=noise)
        found, held = {}, direct(self.model.agent, begin, self.plan.sites)
        for name in self.plan.sites:
            flat = [call.reshape(count, -1).float() for call in calls[name]]
            if len(flat) == steps:  # heads also look at the state where the dream begins, the dynamics do not
                flat = [held.get(name, torch.full_like(flat[0], torch.nan)), *flat]
            found[name] = torch.stack(flat, 1).cpu().numpy()
        return found, {key: value[:, :steps].cpu().numpy() for key, value in out.action.items()}

    def _awake(self, part: np.ndarray) -> Block:
        """The states that were observed along the real future, as if dreamed."""
        valid, states = self.valid[part], {}
        rows = np.concatenate([np.arange(self.at[i], self.at[i] + self.valid[i].sum()) for i in part])
        for site, values in self.seen.sites.items():
            states[site] = np.full((*valid.shape, values.shape[1]), np.nan, np.float32)
            states[site][valid] = values[rows]
        taken = {key: value.cpu().numpy() for key, value in self._recorded_actions(self.begun.row[part]).items()}
        return Block(len(self.plan.conditions), 0, states, taken)

    def _tokens(self, rows: np.ndarray, condition: str) -> Tensor:
        """(n, E) of what was seen at these rows; for A' with other vitals."""
        agent, alter = self.model.agent, self._other_vitals if condition == "A'" else None
        given = read_steps(agent, self.recording, rows[:, None], alter)
        return encode(agent, {key: given[key][:, 0] for key in agent.spec.obs})

    def _other_vitals(self, obs: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Pictures whose status bars show vitals drawn at random, per row."""
        assert self.bar is not None  # this is only asked for A'
        drawn = draw_vitals(self.plan.vitals, len(rows), np.random.default_rng([self.plan.seed, int(rows[0])]))
        inventory = changed(self.recording.covariates["inventory"][rows], dict(zip(VITALS, drawn.T)))
        return {"image": self.bar.draw(obs["image"], inventory)}

    def _recorded_actions(self, rows: np.ndarray) -> dict[str, Tensor]:
        """(n, H, ...) actions from these rows on; zeros after the end of the episode, where nothing is compared."""
        index = rows[:, None] + np.arange(self.plan.horizon)
        beyond = index >= self.recording.episodes["stop"][self.recording.episode[rows]][:, None]
        index = np.minimum(index, self.recording.steps - 1)
        out = {}
        for key, space in self.model.spec.action.items():
            values = np.asarray(self.recording.covariates[key][index.reshape(-1)])
            values = values.reshape(*index.shape, *space.shape).astype(space.dtype)
            values[beyond] = 0
            out[key] = torch.as_tensor(values, device=self.model.agent.device)
        return out

    def _donors(self, rng: np.random.Generator) -> np.ndarray:
        """(S,) for each start one of another episode."""
        if len(np.unique(self.episode)) < 2:
            raise DreamError(f"{OTHER!r} needs dreams that begin in two or more episodes")
        return np.array([rng.choice(np.flatnonzero(self.episode != one)) for one in self.episode])

    def _provenance(self) -> Any:
        mine, own, model = weights_hash(self.model.agent), self.recording.provenance, self.model
        if own.weights != mine:
            log.warning("%s was recorded with other weights than those that dream", self.recording.path)
        return own.again(
            checkpoint=str(model.path) if model.path else None, weights=mine,
            seeds={**own.seeds, "dream": self.plan.seed}, edits=tuple(edit.describe() for edit in model.edits),
            caveats=tuple(dict.fromkeys([*own.caveats, *model.caveats])),
        )  # fmt: skip


def _pick(states: Any, rows: np.ndarray) -> Any:
    """The same named tuple of some rows."""
    return type(states)(*(part[rows] for part in states))
