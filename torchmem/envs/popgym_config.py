"""Arguments and gymnasium ids of the POPGym worlds, cheap to import."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from torchmem.envs.configs import check_choices
from torchmem.options import option

# The names of the package's classes in snake case. Its two labyrinths need mazelib and are left out.
Task = Literal[
    "repeat_previous", "repeat_first", "autoencode", "concentration", "count_recall", "higher_lower", "battleship",
    "mine_sweeper", "multiarmed_bandit", "position_only_cart_pole", "velocity_only_cart_pole",
    "noisy_position_only_cart_pole", "position_only_pendulum", "noisy_position_only_pendulum",
]
Difficulty = Literal["easy", "medium", "hard"]


@dataclasses.dataclass
class PopGymConfig:
    """POPGym: small partially observable tasks, most of them games of cards or boards."""

    task: Task = option("repeat_previous", "Which of the package's tasks.")
    difficulty: Difficulty = option("easy", "The package's three sizes of each task.")

    def __post_init__(self) -> None:
        check_choices(self)


def class_name(task: str, difficulty: str) -> str:
    """("repeat_previous", "easy") -> "RepeatPreviousEasy", as the package calls it."""
    return f"{task}_{difficulty}".title().replace("_", "")


IDS: dict[str, tuple[str, dict[str, Any]]] = {
    f"torchmem/POPGym-{class_name(task, difficulty)}-v0": ("popgym", {"task": task, "difficulty": difficulty})
    for task in typing.get_args(Task) for difficulty in typing.get_args(Difficulty)
}
