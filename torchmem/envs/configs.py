"""The only argument list of each world, cheap to import: no simulator is loaded here."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from torchmem.options import option


@dataclasses.dataclass
class DummyConfig:
    """A world whose reward is a known function of time; for tests and plumbing."""

    length: int = option(20, "Agent steps per episode (the longest, if vary).")
    vary: bool = option(False, "Draw each episode's length uniformly from [length/2, length].")
    ending: Literal["truncated", "terminated", "both"] = option(
        "truncated", "How episodes end; both: even episode seeds terminate, odd ones are truncated.")
    image: int = option(64, "Side of the image in pixels; 0: no image.")
    vector: int = option(4, "Entries of the vector (at least 2, or 0 for none).")
    actions: int = option(5, "Number of discrete actions, or of dimensions if continuous.")
    continuous: bool = option(False, "Act with a vector in [-1, 1] in place of one of `actions` choices.")
    action_repeat: int = option(1, "World steps per agent step.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.length >= 1, self, "length", "at least 1")
        check(self.image >= 0, self, "image", "at least 0")
        check(self.vector == 0 or self.vector >= 2, self, "vector", "0 or at least 2")
        check(self.image > 0 or self.vector > 0, self, "vector", "at least 2 when image is 0")
        check(self.actions >= 1, self, "actions", "at least 1")
        check(self.action_repeat >= 1, self, "action_repeat", "at least 1")


@dataclasses.dataclass
class MinigridMemoryConfig:
    """MiniGrid-Memory: see a key or a ball, walk down a hallway, turn towards its twin."""

    size: int = option(13, "Side of the grid in cells, odd, at least 7.")
    random_length: bool = option(False, "Draw the hallway's end anew each episode.")
    view: Literal[3, 5, 7] = option(3, "Side of the agent's view in cells; 3 never shows cue and choice at once.")
    obs: Literal["symbolic_onehot", "symbolic", "rgb"] = option(
        "symbolic_onehot", "One flat one-hot vector, integer grids, or a 64x64 image.")
    actions: Literal[3, 7] = option(3, "3: left, right, forward; 7: also the four that do nothing here.")
    max_steps: int | None = option(None, "Agent steps before truncation; null: 5 * size^2.")
    start: Literal["stock", "cue_room", "at_cue"] = option(
        "stock", "Where the agent starts: anywhere in room and hallway, or where it sees the cue.")
    direction: bool = option(False, "Also show the compass heading, an allocentric hint.")
    backend: Literal["minigrid", "batched"] = option(
        "minigrid", "minigrid: the package's world, one by one; batched: equal to it, all copies at once on a device.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.size >= 7 and self.size % 2 == 1, self, "size", "odd and at least 7")
        check(self.max_steps is None or self.max_steps >= 1, self, "max_steps", "at least 1, or null")


@dataclasses.dataclass
class MinigridSwitchingConfig(MinigridMemoryConfig):
    """Switching-Memory: MiniGrid-Memory with a second thing to remember, which overrules or inverts the cue."""

    mode: Literal["cue", "rule", "anti"] = option(
        "cue", "cue: a later cue in the hallway counts; rule: a red box means the other one; anti: always the other.")
    p_switch: float = option(0.5, "Probability that a later cue differs from the one before, or that the box is red.")
    n_switches: int = option(1, "Later cues along the hallway, in mode cue.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.p_switch <= 1, self, "p_switch", "in [0, 1]")
        check(1 <= self.n_switches <= 4, self, "n_switches", "in 1..4")
        room = self.size - 8 if self.mode == "cue" else 1
        check(self.n_switches <= max(room, 0), self, "n_switches",
               f"1 outside mode cue and at most {max(room, 0)} for size {self.size}: each needs a cell of the hallway")


@dataclasses.dataclass
class MinigridFourRoomConfig:
    """Four-Room-Memory: see a key, ball or box in one room, find its twin in the corner of another."""

    size: int = option(13, "Side of the grid in cells, odd, at least 9.")
    view: Literal[3, 5, 7] = option(7, "Side of the agent's view in cells.")
    n_candidates: Literal[2, 3] = option(3, "Corners that hold an object; one of them is the target.")
    door_layouts: int = option(
        1, "Ways to place the four doors, each equally likely; 1: in the middle of each wall, more: others, always the "
        "same ones.")
    obs: Literal["symbolic_onehot", "symbolic", "rgb"] = option(
        "symbolic_onehot", "One flat one-hot vector, integer grids, or a 64x64 image.")
    actions: Literal[3, 7] = option(3, "3: left, right, forward; 7: also the four that do nothing here.")
    max_steps: int | None = option(None, "Agent steps before truncation; null: 5 * size^2.")
    start: Literal["stock", "cue_room"] = option(
        "stock", "Where the agent starts: any pose in the first room, or one that sees the cue.")
    direction: bool = option(False, "Also show the compass heading, an allocentric hint.")
    backend: Literal["minigrid", "batched"] = option(
        "minigrid", "minigrid: on the package, one by one; batched: equal to it, all copies at once on a device.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.size >= 9 and self.size % 2 == 1, self, "size", "odd and at least 9")
        check(self.max_steps is None or self.max_steps >= 1, self, "max_steps", "at least 1, or null")
        check(1 <= self.door_layouts <= 64, self, "door_layouts", "in 1..64")


@dataclasses.dataclass
class MemoryMazeConfig:
    """Memory Maze: remember where coloured balls lie and fetch the one whose colour frames the image."""

    size: int = option(9, "Side of the maze in cells, odd; 9, 11, 13 and 15 are the published tasks, 7 is a small one.")
    n_targets: int | None = option(
        None, "Number of balls, 1 to 6; null: the task's own (7: 2, 9: 3, 11: 4, 13: 5, 15: 6).")
    time_limit: float | None = option(
        None, "Seconds per episode; null: the task's own (7: 125, 9: 250, 11: 500, 13: 750, 15: 1000).")
    image: int = option(64, "Side of the image in pixels.")
    control_freq: float = option(4.0, "Agent steps per second of the simulated world.")
    good_visibility: bool = option(False, "Low walls and floating balls: the easily visible variant.")
    randomize_colors: bool = option(False, "Draw the balls' colours from all six each episode.")

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.size >= 7 and self.size % 2 == 1, self, "size", "odd and at least 7")
        known = self.size in (7, 9, 11, 13, 15)
        check(known or self.n_targets is not None, self, "n_targets", f"given for size {self.size}")
        check(known or self.time_limit is not None, self, "time_limit", f"given for size {self.size}")
        check(self.n_targets is None or 1 <= self.n_targets <= 6, self, "n_targets", "in 1..6, or null")
        substeps = 200 / self.control_freq if self.control_freq > 0 else 0.5
        check(substeps == round(substeps), self, "control_freq", "a divisor of the physics' 200 Hz")
        check(self.time_limit is None or self.time_limit * self.control_freq >= 1, self, "time_limit",
               "at least one agent step long, or null")
        check(self.image >= 64, self, "image", "at least 64 (the target's colour is drawn as a border)")


def check(ok: bool, config: Any, key: str, meaning: str) -> None:
    """Raise ValueError naming the field and its value unless ok."""
    if not ok:
        raise ValueError(f"{type(config).__name__}.{key} must be {meaning}; got {getattr(config, key)!r}")


def check_choices(config: Any) -> None:
    """A dataclass does not enforce Literal; a wrong word must not reach the world."""
    for key, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            check(getattr(config, key) in choices, config, key, "one of " + ", ".join(map(str, choices)))
