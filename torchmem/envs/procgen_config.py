"""Procgen's arguments, which modes each game has, and which levels belong to which split. Loads no simulator."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from torchmem.envs.configs import check, check_choices
from torchmem.envs.seeds import Split
from torchmem.options import option

Game = Literal[
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot", "heist", "jumper",
    "leaper", "maze", "miner", "ninja", "plunder", "starpilot"]
Mode = Literal["easy", "hard", "extreme", "memory", "exploration"]
GAMES: tuple[Game, ...] = get_args(Game)

# Modes beside easy and hard, which every game has. A test compares this with what EnvPool registers.
EXTRA_MODES: dict[Game, tuple[Mode, ...]] = {
    "caveflyer": ("memory", "exploration"), "chaser": ("extreme",), "climber": ("exploration",),
    "coinrun": ("exploration",), "dodgeball": ("extreme", "memory"), "heist": ("memory", "exploration"),
    "jumper": ("memory", "exploration"), "leaper": ("extreme", "exploration"), "maze": ("memory", "exploration"),
    "miner": ("memory",), "ninja": ("exploration",), "starpilot": ("extreme",)}
# The one level, of hard difficulty, that mode exploration of a game consists of: openai/procgen, procgen/env.py.
EXPLORATION_LEVELS: dict[Game, int] = {
    "caveflyer": 1259048185, "climber": 1561126160, "coinrun": 1949448038, "heist": 876640971, "jumper": 1434825276,
    "leaper": 1318677581, "maze": 158988835, "ninja": 1123500215}

# Games that do not end after 1,000 steps (their sources: openai/procgen, procgen/src/games).
LIMITS: dict[Game, int] = {"bigfish": 6000, "bossfight": 4000, "leaper": 500, "maze": 500, "plunder": 4000}

# A level is named by an int32 and drawn from it alone. The upper half of them is never trained on.
ALL_LEVELS = range(2**31 - 1)
TRAINABLE = range(2**30)
HELD_OUT: dict[Split, range] = {"eval": range(2**30, 3 * 2**29), "record": range(3 * 2**29, 2**31 - 1)}


@dataclasses.dataclass
class ProcgenConfig:
    """Procgen: 16 games, each with as many levels as there are integers, to tell learning from learning by heart."""

    game: Game = option("coinrun", "Which of the 16 games.")
    mode: Mode = option("hard", "Difficulty; memory: larger levels in partial view; exploration: one hard level.")
    use_backgrounds: bool = option(True, "Draw a picture behind the scene; false: black.")
    num_levels: int = option(0, "Levels to train on; 0: all trainable ones from start_level on, about a billion.")
    start_level: int = option(0, "The first level to train on.")
    held_out: bool = option(True, "Evaluate and record on levels that training never shows; false: on those it does.")
    backend: Literal["single", "pool"] = option(
        "single", "single: one by one; pool: all copies at once in EnvPool's threads, for agent=ppo and evaluation.")
    threads: int = option(0, "Threads of the pool; 0: one per core that this process may use.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.mode in modes(self.game), self, "mode",
              f"one that {self.game} has ({', '.join(modes(self.game))}), or game one that has it "
              f"({', '.join(g for g in GAMES if self.mode in modes(g))})")
        check(self.threads >= 0, self, "threads", "at least 0")
        if self.mode == "exploration":
            check(self.num_levels == 0 and self.start_level == 0, self, "num_levels",
                  f"0, and start_level too, in mode exploration, which is one level; start_level={self.start_level}")
            check(not self.held_out, self, "held_out", "false in mode exploration: its only level cannot be held out")
            return
        check(self.start_level in TRAINABLE, self, "start_level", "in [0, 2^30); the levels above are held out")
        room = TRAINABLE.stop - self.start_level
        check(0 <= self.num_levels <= room, self, "num_levels",
              f"in 0..{room} from start_level={self.start_level} on: levels from 2^30 up are held out")


def modes(game: Game) -> tuple[Mode, ...]:
    """The modes that EnvPool offers for a game."""
    return ("easy", "hard", *EXTRA_MODES.get(game, ()))


def time_limit(game: Game, mode: Mode) -> int:
    """Steps after which the game ends an episode. EnvPool is told, as it believes in 1,000 for jumper's memory mode."""
    return 2000 if (game, mode) == ("jumper", "memory") else LIMITS.get(game, 1000)


def levels(config: ProcgenConfig, split: Split) -> range:
    """The levels an episode of this split is drawn from.

    train: [start_level, start_level + num_levels). eval and record: two ranges of half a billion that no training range
    can reach; with held_out=false and in mode exploration the training range.
    """
    if config.mode == "exploration":
        level = EXPLORATION_LEVELS[config.game]
        return range(level, level + 1)
    if config.held_out and split != "train":
        return HELD_OUT[split]
    start = config.start_level
    return range(start, start + config.num_levels if config.num_levels else TRAINABLE.stop)


IDS: dict[str, tuple[str, dict[str, Any]]] = {
    f"torchmem/Procgen-{game.capitalize()}-v0": ("procgen", {"game": game}) for game in GAMES}
