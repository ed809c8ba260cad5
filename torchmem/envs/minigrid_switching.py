"""Switching-Memory: MiniGrid-Memory with a second thing to remember (our definition; circuits spec section 5.2).

mode "cue": a niche in the hallway's north wall holds another key or ball, and that one counts: memory is overwritten.
With `n_switches` niches the last one counts; each differs from the cue before it with probability p_switch.
mode "rule": a box lies in the start room; red (probability p_switch): go to the object that does not match. Two bits
must be kept, and the answer is their exclusive or.
mode "anti": always go to the object that does not match: the goal of an edit.

Dynamics and reward are Memory's, on the minigrid package. Truth beyond `minigrid_world.py`: first_cue lies in the start
room, last_cue is the one that counts (cue_type is the same); switch: they differ, or the box is red; niche_visible and
steps_since_niche are of the last niche, or of the box. `phase` leaves 0 once everything was seen that decides the
target: the last niche; or cue and box; or the cue.
"""

from __future__ import annotations

import functools
import logging

from torchmem.envs.configs import MinigridSwitchingConfig
from torchmem.envs.minigrid_geometry import count_joint
from torchmem.envs.minigrid_memory import FACTS
from torchmem.envs.minigrid_switching_layouts import SwitchingLayout, layouts
from torchmem.envs.minigrid_world import DrawnWorld, spec_of
from torchmem.types import EnvSpec

SWITCHING_FACTS = {
    **FACTS, "first_cue": "0 key, 1 ball", "last_cue": "0 key, 1 ball", "switch": "bool", "niche_visible": "bool",
    "steps_since_niche": "steps",
}
log = logging.getLogger("torchmem")


class MinigridSwitching(DrawnWorld):
    """See the module's docstring. `reset(options=...)` takes Memory's and

    niche (mode "cue": a kind, or one for each niche) and switch (mode "cue": whether the last niche differs from the
    first cue; mode "rule": whether the box is red). Changing only `cue` keeps which niches differ from the cue before
    them, so it changes the niches too; give `niche` to hold them.
    """

    NAME = "minigrid_switching"
    OPTIONS = (*SwitchingLayout.OPTIONS, "agent_pos", "agent_dir")
    config: MinigridSwitchingConfig

    def __init__(self, config: MinigridSwitchingConfig) -> None:
        super().__init__(config, layouts(config))

    @classmethod
    def describe(cls, config: MinigridSwitchingConfig) -> EnvSpec:
        _warn(config.size, config.view, config.mode, config.n_switches, config.random_length)
        # chance: walk to one end blindly
        return spec_of(cls.NAME, config, SWITCHING_FACTS, {"chance": 0.5, "oracle": 1.0})


@functools.cache
def _warn(size: int, view: int, mode: str, n_switches: int, random_length: bool) -> None:
    """Say, once, where the target can be told without memory."""
    config = MinigridSwitchingConfig(
        size=size, view=view, mode=mode, n_switches=n_switches, random_length=random_length)  # type: ignore[arg-type]
    family = [layout for layout, _ in layouts(config)]
    for mark in family[0].deciding:
        if total := count_joint(family, view, mark):
            log.warning(
                "minigrid_switching size=%d view=%d mode=%s: %d poses show the %s and a choice object at once, so that "
                "one need not be remembered; view=3 with size 11 or more never does", size, view, mode, total,
                "box" if (mark, mode) == ("niche", "rule") else mark)
