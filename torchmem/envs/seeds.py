"""Which seed opens which episode. Train, eval and record seeds are disjoint: the split is part of the seed."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Split = Literal["train", "eval", "record"]
SPLITS: tuple[Split, ...] = get_args(Split)

# 63 bits, so that a seed fits int64: split | run seed | env index | episode.
SPLIT_BITS, SEED_BITS, ENV_BITS, EPISODE_BITS = 2, 24, 12, 25
SPLIT_SHIFT = SEED_BITS + ENV_BITS + EPISODE_BITS


def episode_seed(split: Split, seed: int, env_index: int, episode: int) -> int:
    """The reset seed of an episode, in [0, 2^63). Different arguments never give the same seed.

    split: who acts in the episode. seed: the run's, below 2^24. env_index: below 4096. episode: below 2^25.
    Raises ValueError naming the argument that is out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; valid: {', '.join(SPLITS)}")
    packed = SPLITS.index(split)
    for name, value, bits in (
        ("seed", seed, SEED_BITS), ("env_index", env_index, ENV_BITS), ("episode", episode, EPISODE_BITS)
    ):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} must be in [0, 2^{bits}), got {value}")
        packed = (packed << bits) | int(value)
    return packed


def narrow_seed(seed: int, stream: int = 0) -> int:
    """A 31-bit seed from an episode seed, for libraries whose seeds are C ints.

    The upper two bits stay the split's, so train, eval and record remain disjoint; the other 29 are a hash, so two
    episodes of one split may meet (at 10^4 episodes: about 0.1 pairs expected). stream: independent seeds
    of one episode.
    """
    hashed = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]) & (2**29 - 1)
    return ((seed >> SPLIT_SHIFT) & 3) << 29 | hashed


def split_of(seed: int) -> Split:
    """The split of an episode seed; a plain small seed is of "train". Raises ValueError for what is no seed of ours."""
    index = seed >> SPLIT_SHIFT
    if not 0 <= index < len(SPLITS):
        raise ValueError(f"an episode seed must be in [0, {len(SPLITS)} * 2^{SPLIT_SHIFT}), got {seed}")
    return SPLITS[index]
