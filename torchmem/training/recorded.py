"""Episodes of a Recording as a simulator learns from them and is measured on: rows, what the agent carried, windows.

A recording keeps what some sites held, not all that an agent carries. So the agent goes through the recorded
observations and actions once more, and its carry after each step is kept beside them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.packing import map_carry
from torchmem.models.simulator.window import MEMORY
from torchmem.recording import Recording
from torchmem.training.typed import ConfigError
from torchmem.types import FLAGS, EnvSpec

Rows = dict[str, np.ndarray]  # key -> (T, ...): observations, actions, reward, flags, what the agent carried
TOGETHER = 32  # episodes that the agent goes through in lock-step


def check_recording(rec: Recording, spec: EnvSpec) -> None:
    """Raise ConfigError where a recording lacks what a simulator of this world learns from."""
    needs = [*(f"obs.{key}" for key in spec.obs), *spec.action, "reward", *FLAGS]
    missing = [name for name in needs if name not in rec.covariates]
    if missing:
        way = "record without --no-observations" if missing[0].startswith("obs.") else "record the agent's own world"
        raise ConfigError(f"{rec.path} lacks {', '.join(missing)}: {way}")
    for key, space in {**{f"obs.{k}": s for k, s in spec.obs.items()}, **spec.action}.items():
        found = rec.covariates[key].shape[1:]
        if found != space.shape:
            raise ConfigError(f"{key} in {rec.path} is {found}, the agent's world has {space.shape}: another world")


def levels_of(rec: Recording) -> list[str]:
    """What each episode was played on: its `level_seed` where the world tells one, else its reset seed (or number)."""
    if "level_seed" in rec.covariates:
        told = rec.covariates["level_seed"]
        return [f"level {int(np.ravel(told[int(start)])[0])}" for start in rec.episodes["start"]]
    return [f"seed {seed}" if seed >= 0 else f"episode {i}" for i, seed in enumerate(rec.episodes["seed"])]


def split_levels(rec: Recording, share: float) -> tuple[list[int], list[int]]:
    """Episodes to train on and episodes held out, by level: all episodes of one level are on one side.

    A level's side depends on its name alone, so that recordings of one world agree. Raises ConfigError where a side is
    empty.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for episode, level in enumerate(levels_of(rec)):
        place = int.from_bytes(hashlib.sha256(level.encode()).digest()[:8]) / 2**64
        sides[place < share].append(episode)
    for name, side in zip(("to train on", "held out"), sides, strict=True):
        if not side:
            raise ConfigError(
                f"{rec.path} has {len(rec.episodes)} episodes, none of them {name} at agent.held_out={share:g}: record "
                f"more levels, or change the share"
            )
    return sides


def read_rows(rec: Recording, loop: AgentLoop, episodes: Sequence[int], seed: int = 0) -> Iterator[Rows]:
    """The rows of each episode in turn, what the agent carried among them. seed: of the agent's latents, if any."""
    for begin in range(0, len(episodes), TOGETHER):
        chosen = episodes[begin : begin + TOGETHER]
        told = [_read(rec, loop.agent.spec, episode) for episode in chosen]
        generator = torch.Generator(loop.agent.device).manual_seed(seed * 100_003 + begin)
        for rows, carried in zip(told, carry_rows(loop, told, generator), strict=True):
            yield {**rows, MEMORY: carried}


def _read(rec: Recording, spec: EnvSpec, episode: int) -> Rows:
    at = rec.rows(episode)
    rows = {key: np.asarray(rec.covariates[f"obs.{key}"][at]) for key in spec.obs}
    rows |= {key: np.asarray(rec.covariates[key][at]) for key in (*spec.action, "reward", *FLAGS)}
    rows["is_first"][0], rows["is_last"][-1] = True, True
    return rows


@torch.no_grad()
def carry_rows(loop: AgentLoop, episodes: Sequence[Rows], generator: torch.Generator) -> list[np.ndarray]:
    """What the agent carries after each step of some episodes: (T, P) each."""
    agent = loop.agent
    order = sorted(range(len(episodes)), key=lambda i: -len(episodes[i]["reward"]))  # those still open come first
    lengths = [len(episodes[i]["reward"]) for i in order]
    packed = [np.zeros((length, loop.packing.size), np.float32) for length in lengths]
    carry = agent.initial(len(order))
    for t in range(lengths[0]):
        count = sum(length > t for length in lengths)
        carry = map_carry(lambda part: part[:count], carry)  # noqa: B023 (called at once)
        now = {
            key: torch.from_numpy(np.stack([episodes[i][key][t] for i in order[:count]])).to(agent.device)
            for key in (*agent.spec.obs, *agent.spec.action)
        }
        obs = {key: now[key] for key in agent.spec.obs}
        obs["is_first"] = torch.full((count,), t == 0, device=agent.device)
        noise = dataclasses.replace(agent.acting_noise(count, generator), action=None)
        _, carry, _ = agent.policy(obs, carry, noise)
        if loop.packing.has_action:
            vector = loop.action_vector({key: now[key] for key in agent.spec.action})
            carry = carry._replace(action=vector.to(carry.action.dtype))
        for rows, values in zip(packed, loop.packing.pack(carry).cpu().numpy()):
            rows[t] = values
    return [packed[order.index(i)] for i in range(len(order))]


def windows_at(episodes: Sequence[Rows], places: Iterable[tuple[int, int]], context: int, steps: int) -> dict[str, Any]:
    """Windows as `cut_window` takes them, (B, context - 1 + steps, ...), one per (episode, first simulated step).

    What lies before an episode is zeros, behind it too, opened by an is_first that makes it weigh nothing.
    """
    out: dict[str, list[np.ndarray]] = {}
    for episode, first in places:
        rows = episodes[episode]
        begin, stop, length = first - context + 1, first + steps, len(rows["reward"])
        for key, values in rows.items():
            piece = np.zeros((stop - begin, *values.shape[1:]), values.dtype)
            inside = slice(max(begin, 0), min(stop, length))
            piece[inside.start - begin : inside.stop - begin] = values[inside]
            if key == "is_first" and stop > length:
                piece[length - begin] = True
            out.setdefault(key, []).append(piece)
    return {key: torch.from_numpy(np.stack(pieces)) for key, pieces in out.items()}


def spread_places(
    episodes: Sequence[Mapping[str, np.ndarray]], each: int, steps: int, seed: int
) -> list[tuple[int, int]]:
    """Up to `each` first steps in every episode, drawn so that at least two steps are left to simulate."""
    rng = np.random.default_rng(seed)
    places = []
    for episode, rows in enumerate(episodes):
        last = max(len(rows["reward"]) - min(steps, 2), 0)
        drawn = rng.choice(last + 1, min(each, last + 1), replace=False)
        places += [(episode, int(first)) for first in sorted(drawn)]
    return places
