"""An agent and a world whose every cause is known: evidence for two sides, kept along two directions of its memory.

    cue A --> m_A --(+)--> action --> place --(shown)--> m_B        all of it linear
    cue B --> m_B --(-)--> action

Memory is 24 numbers, a rotation of (m_A, m_B, 22 leaky noises). Step by step, from one memory to the next:

    inside the agent  m_A <- KEEP m_A, m_B <- KEEP m_B
    through the world m_A -> place -> m_B with +PUSH, m_B -> place -> m_B with -PUSH     (one step later by place's own)

The agent is a PPO with a GRU whose gates stand still; it works at 1 % of tanh's range, where tanh is a line. The real
world is `World` (numpy, steps as VectorEnv does); `Simulator` is the same in torch, without its noise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.protocol import Start, Stepped
from torchmem.types import EnvSpec, Space

UNITS, INPUTS = 24, 24
KEEP, GAIN, DRIVE, FAR = 0.8, 0.4, 0.7, 0.5  # of memory, of the actor, action -> place, place's own persistence
SMALL = 0.002
SPEC = EnvSpec(
    "planted", {"seen": Space((INPUTS,), "float32")}, {"push": Space((1,), "float32", low=-1, high=1)}, 10.0,
    truth={"place": "cells"},
)  # fmt: skip
SHOWN = 0.3  # place -> m_B, in cues
CUE_STEPS, LENGTH = 3, 24


def rotation() -> torch.Tensor:
    """(24, 24) orthonormal rows: what each source moves in memory."""
    return torch.linalg.qr(torch.randn(UNITS, UNITS, generator=torch.Generator().manual_seed(3)))[0].float()


def agent(dtype: torch.dtype = torch.float32) -> PPOAgent:
    """seen: 0 cue A, 1 cue B (and place, SHOWN as strong), the others noise."""
    config = PPOConfig(
        core="gru", units=UNITS, encoder_layers=0, head_layers=0, see_action=False, learned_start=False
    )
    made = PPOAgent(SPEC, config)
    core = made.core
    turn = rotation()
    with torch.no_grad():
        for value in (core.weight_ih, core.weight_hh, core.bias_ih, core.bias_hh):
            value.zero_()
        core.weight_ih[2 * UNITS :] = SMALL / (1 - KEEP) * turn.T @ torch.eye(UNITS, INPUTS)
        core.bias_ih[UNITS : 2 * UNITS] = math.log(KEEP / (1 - KEEP))  # the gate says what is kept
        out = made.actor.out["push"]
        out.weight.copy_((GAIN / SMALL * (turn[0] - turn[1]))[None])
        out.bias.zero_()
        made.critic.out.weight.copy_((turn[0] + turn[1])[None] / SMALL)
        made.critic.out.bias.zero_()
    made = made.to(dtype)
    made.dtype = dtype
    return made


class Carry(NamedTuple):
    deter: torch.Tensor  # (B, 1) place
    stoch: torch.Tensor  # (B, 1, 1) nothing


class Simulator:
    """The world without cues and noise."""

    spec, context, device = SPEC, 2, torch.device("cpu")

    def world_noise(self, batch, horizon, generator):
        return None, None

    def look(self, carry):
        place = carry.deter
        seen = torch.cat([torch.zeros_like(place), SHOWN * place, *[torch.zeros_like(place)] * (INPUTS - 2)], -1)
        return Stepped(carry, {"seen": seen}, place[:, 0], torch.zeros_like(place[:, 0]))

    def step(self, carry, action, draw):
        return self.look(Carry(FAR * carry.deter + DRIVE * action, carry.stoch))

    def state_of(self, carry):
        return carry.deter


def starts(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Start:
    """Memories as they stand after cue A (even) or B (odd), at place 0."""
    turn = rotation().to(dtype)
    held = torch.zeros(count, UNITS, dtype=dtype)
    held[torch.arange(count), torch.arange(count) % 2] = 2.0
    held[:, 2:] = torch.randn(count, UNITS - 2, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    loop = AgentLoop(agent(dtype))
    carry = loop.agent.initial(count)
    carry = carry._replace(hidden=SMALL * held @ turn)
    empty = torch.zeros(count, 1, dtype=dtype)
    return Start(Carry(empty, empty[:, None]), carry, torch.zeros(count, dtype=torch.bool))


class World:
    """n copies in lock-step. Episodes of LENGTH steps open with cue A, cue B, both or neither, in turn; noise
    throughout, and now and then another cue of either side. The same seed gives the same episodes whatever is done."""

    spec = SPEC

    def __init__(self, n: int, seed: int = 0) -> None:
        self.n = n
        self.rng = np.random.default_rng(seed)
        self.time = LENGTH

    def step(self, actions):
        fresh = self.time >= LENGTH
        if fresh:
            self.time, self.place = 0, np.zeros(self.n)
            self.cues = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])[np.arange(self.n) % 4]
        else:
            push = np.clip(np.asarray(actions["push"])[:, 0], -1, 1)
            self.place = FAR * self.place + DRIVE * push
        seen = np.zeros((self.n, INPUTS))
        more = self.rng.random((self.n, 2)) < 0.06
        seen[:, :2] = more * self.rng.exponential(1.0, (self.n, 2))
        if self.time < CUE_STEPS:
            seen[:, :2] += self.cues
        seen[:, 1] += SHOWN * self.place
        seen[:, 2:] = 0.15 * self.rng.normal(size=(self.n, INPUTS - 2))
        self.time += 1
        last = np.full(self.n, self.time >= LENGTH)
        data = {"seen": seen.astype(np.float32), "reward": self.place.astype(np.float32), "is_last": last,
                "is_first": np.full(self.n, fresh), "is_terminal": last & False}  # fmt: skip
        return data, {"place": self.place.copy()}


def jacobian(lag: int) -> np.ndarray:
    """(2, 2) of (m_A, m_B) at t + lag by those at t (row earlier, column later), memory after the step at t."""
    # state: m_A, m_B, place shown at the step that made them; action = GAIN (m_A - m_B) of the same step
    move = np.zeros((3, 3))
    place = np.array([DRIVE * GAIN, -DRIVE * GAIN, FAR])  # next place by each
    move[:, 2] = place
    move[0, 0] = move[1, 1] = KEEP
    move[:, 1] += SHOWN * place
    return np.linalg.matrix_power(move, lag)[:2, :2]
