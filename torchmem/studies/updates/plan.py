"""Plans: which agent learns what first, what is changed then, and how that is tested."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """One experiment. base, after, change and test are words of the training configuration; later ones win.

    base: first training. after: what all later training differs in (a learning rate). change: what the change branch
    differs in. test: the world that all are tested in. steps: agent steps of first training, of each branch and of
    each salvage (0: none). term: the measure that the change is about; None: the return. episodes: of each test.
    sites, targets: activations that are read out, and truths that are decoded from them, over
    `read_steps` steps of 16 worlds.
    """

    base: tuple[str, ...]
    change: tuple[str, ...]
    after: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    pre_steps: int = 500_000
    steps: int = 100_000
    salvage: int = 100_000
    term: str | None = None
    episodes: int = 64
    scales: tuple[float, ...] = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
    sites: tuple[str, ...] = ("memory", "actor.mlp")
    targets: tuple[str, ...] = ()
    read_steps: int = 200

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> UpdatePlan:
        """Raises ValueError naming an unknown or missing field."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(data) - known:
            raise ValueError(f"a plan has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
        if lacking := {"base", "change"} - set(data):
            raise ValueError(f"a plan needs {', '.join(sorted(lacking))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


PLANS: dict[str, UpdatePlan] = {
    # Land without paying for fuel, then pay five times the stock price.
    "lunar_lander": UpdatePlan(
        base=("preset=lunar_lander", "env.reward_fuel=0", "workers=0"),
        after=("agent.schedule=constant", "agent.lr=3e-4"),
        change=("env.reward_fuel=5",),
        test=("env.reward_fuel=1",),
        pre_steps=499_712, steps=102_400, salvage=102_400, term="fuel", sites=("actor.mlp", "critic.mlp"),
        targets=("angle",),
    ),
    # Go to the object that matches the cue; then a red box says: to the other one. Tested with both boxes.
    "switching": UpdatePlan(
        base=(
            "agent=ppo", "env=minigrid_switching", "env.mode=rule", "env.p_switch=0", "env.size=11", "env.view=3",
            "env.backend=batched", "trainer.threads=1", "goal.score=0.97", "goal.episodes=2000",
        ),
        after=("agent.lr=1e-3", "goal.score=null"),
        change=("env.p_switch=1",),
        test=("env.p_switch=0.5",),
        pre_steps=8_000_000, steps=409_600, salvage=204_800, term="success, rule inverted", episodes=512,
        targets=("cue_type",),
    ),
}  # fmt: skip


def plan_of(name: str | Path) -> UpdatePlan:
    """One of `PLANS`, or the plan in a JSON file. Raises ValueError."""
    if str(name) in PLANS:
        return PLANS[str(name)]
    file = Path(name)
    if not file.is_file():
        raise ValueError(f"no plan {str(name)!r}: give one of {', '.join(PLANS)}, or a JSON file")
    try:
        data = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    return UpdatePlan.from_json(data)


def small(plan: UpdatePlan) -> UpdatePlan:
    """The same experiment at a budget for tests and first looks: about a minute; its numbers mean nothing."""
    lander = any("lunar_lander" in word for word in plan.base)
    tiny = ("envs=8", "batch=8", "length=16", *(("env.max_steps=120",) if lander else ()))
    return dataclasses.replace(
        plan, base=(*plan.base, *tiny), pre_steps=2048, steps=512, salvage=256, episodes=16, scales=(-1.0, 0.0, 1.0),
        read_steps=40,
    )
