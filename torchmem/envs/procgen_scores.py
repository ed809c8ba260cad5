"""What Procgen's games pay: to random actions, and at best."""

from __future__ import annotations

from torchmem.envs.procgen_config import Game, Mode

# The constants that scores are normalised with, R_max of appendix C of Cobbe et al. 2020 (arXiv:1912.01588): the most
# that can be reached, or what a long training reached where that is unknown. Per game: easy, hard.
BEST: dict[Game, tuple[float, float]] = {
    "bigfish": (40, 40), "bossfight": (13, 13), "caveflyer": (12, 13.4), "chaser": (13, 14.2), "climber": (12.6, 12.6),
    "coinrun": (10, 10), "dodgeball": (19, 19), "fruitbot": (32.4, 27.2), "heist": (10, 10), "jumper": (10, 10),
    "leaper": (10, 10), "maze": (10, 10), "miner": (13, 20), "ninja": (10, 10), "plunder": (30, 30),
    "starpilot": (64, 35)}

# Mean return of uniformly random actions, measured with EnvPool 1.2.5 over 100 episodes, the first 4 of 25 copies, on
# levels of the eval range (exploration: its level). Standard error: at most 0.5.
# The paper's R_min is another thing, the return of an agent that was trained blind.
RANDOM: dict[Game, dict[Mode, float]] = {
    "bigfish": {"easy": 0.78, "hard": 0.18},
    "bossfight": {"easy": 0.01, "hard": 0.00},
    "caveflyer": {"easy": 2.40, "hard": 2.36, "memory": 0.20, "exploration": 0.00},
    "chaser": {"easy": 0.62, "hard": 0.69, "extreme": 0.68},
    "climber": {"easy": 1.60, "hard": 1.20, "exploration": 0.00},
    "coinrun": {"easy": 2.60, "hard": 2.90, "exploration": 0.00},
    "dodgeball": {"easy": 0.66, "hard": 0.64, "extreme": 0.60, "memory": 0.64},
    "fruitbot": {"easy": -2.78, "hard": -0.80},
    "heist": {"easy": 3.50, "hard": 1.90, "memory": 1.30, "exploration": 0.00},
    "jumper": {"easy": 3.20, "hard": 0.90, "memory": 1.30, "exploration": 0.00},
    "leaper": {"easy": 2.50, "hard": 0.60, "extreme": 0.80, "exploration": 0.00},
    "maze": {"easy": 3.70, "hard": 2.60, "memory": 2.80, "exploration": 0.00},
    "miner": {"easy": 1.43, "hard": 1.19, "memory": 1.05},
    "ninja": {"easy": 2.70, "hard": 1.30, "exploration": 0.00},
    "plunder": {"easy": 4.82, "hard": 2.95},
    "starpilot": {"easy": 1.40, "hard": 0.72, "extreme": 0.31}}


def scores(game: Game, mode: Mode) -> dict[str, float]:
    """Reference returns of a game: `chance`, of random actions, and `oracle`, which is published for easy and hard."""
    easy, hard = BEST[game]
    best = {"easy": {"oracle": float(easy)}, "hard": {"oracle": float(hard)}}
    return {"chance": RANDOM[game][mode], **best.get(mode, {})}
