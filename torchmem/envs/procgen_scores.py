"""What Procgen's games pay at best."""

from __future__ import annotations

from torchmem.envs.procgen_config import Game, Mode

# The constants that scores are normalised with, R_max of appendix C of Cobbe et al. 2020 (arXiv:1912.01588): the most
# that can be reached, or what a long training reached where that is unknown. Per game: easy, hard.
BEST: dict[Game, tuple[float, float]] = {
    "bigfish": (40, 40), "bossfight": (13, 13), "caveflyer": (12, 13.4), "chaser": (13, 14.2), "climber": (12.6, 12.6),
    "coinrun": (10, 10), "dodgeball": (19, 19), "fruitbot": (32.4, 27.2), "heist": (10, 10), "jumper": (10, 10),
    "leaper": (10, 10), "maze": (10, 10), "miner": (13, 20), "ninja": (10, 10), "plunder": (30, 30),
    "starpilot": (64, 35)}


def scores(game: Game, mode: Mode) -> dict[str, float]:
    """Reference returns of a game: `oracle`, where published."""
    easy, hard = BEST[game]
    best = {"easy": easy, "hard": hard}.get(mode)
    return {} if best is None else {"oracle": float(best)}
