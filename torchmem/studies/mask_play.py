"""What masks are found on and judged by: complete episodes of the full agent, and how masked ones fare in the world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.envs.tensor_tables import RUNNING, SUCCESS, WRONG
from torchmem.envs.tensor_world import CHOICE, TensorWorld
from torchmem.intervals import wilson
from torchmem.models.noise import Noise
from torchmem.studies.cue_runs import Cues


def balanced_options(cues: Cues, spec: Any, n: int) -> dict[str, list[str]]:
    """Reset options of n rows with all cues as often, and all orders of the choices where the world names them."""
    kinds = cues.balanced(n)
    options = {"cue": [cues.kinds[k] for k in kinds]}
    if hasattr(TensorWorld(spec.name, spec.kwargs, 1).tables.layouts[0], "top"):
        options["layout"] = [cues.kinds[(i // len(cues.kinds)) % len(cues.kinds)] for i in range(n)]
    return options


@torch.no_grad()
def full_play(
    model: Any, rows: int, *, steps: int = 80, wander: float = 0.1, seed: int = 0
) -> tuple[dict[str, Tensor], Tensor]:
    """Episodes of the agent's own greedy play: a batch (B, T, ...) for `fit_mask`, and what each step counts (B, T).

    wander: share of steps with a random action in place of the policy's, so that the ways back are seen too. The steps
    from the first sight of a choice on count as much as all before them; what follows the end of an episode, nothing.
    The longest twentieth of the episodes is left out.
    """
    agent, spec = model.agent, model.spec
    world = TensorWorld(spec.name, spec.kwargs, rows, split="record", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    (key, space), = spec.action.items()
    carry, ended = agent.initial(rows), torch.zeros(rows, dtype=torch.bool)
    seen: dict[str, list[Tensor]] = {k: [] for k in (*spec.obs, key, "is_first", "weight", "choice")}
    data, truth = world.reset(balanced_options(Cues(spec), spec, rows))
    for _ in range(steps):
        told = {k: data[k].to(agent.device) for k in (*spec.obs, "is_first")}
        drawn = torch.rand(rows, generator=generator) < wander
        other = torch.randint(space.classes or 2, (rows,), generator=generator)
        before = carry
        action, carry, _ = agent.policy(told, carry, Noise.mode())
        action = torch.where(drawn, other, action[key].cpu())
        if drawn.any():  # the carry holds the action that was really taken
            unrolled = {k: told[k].unsqueeze(1) for k in spec.obs}
            taken = {key: action.to(agent.device).unsqueeze(1)}
            carry = agent.unroll(unrolled, taken, told["is_first"].unsqueeze(1), before, Noise.mode()).carry
        now = {**told, key: action, "weight": ~(ended | data["is_last"]), "choice": truth["phase"] == CHOICE}
        for name, value in now.items():
            seen[name].append(value.cpu())
        ended = ended | data["is_last"]
        if bool(ended.all()):
            break
        data, truth = world.step({key: action})
    batch = {name: torch.stack(values, 1) for name, values in seen.items()}
    length = batch["weight"].sum(1)
    short = length <= length.float().quantile(0.95)  # those who lost their way would make every pass longer
    batch = {name: value[short, : int(length[short].max())] for name, value in batch.items()}
    counts, choice = batch.pop("weight").float(), batch.pop("choice")
    late, early = (counts * choice).sum(), (counts * ~choice).sum()
    share = torch.where(choice, 0.5 / late.clamp(min=1), 0.5 / early.clamp(min=1))
    return batch, counts * share


@torch.no_grad()
def play_score(
    model: Any, *, episodes: int = 500, steps: int = 80, seed: int = 0, kwargs: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Greedy play of fresh episodes, cues balanced. "score": share that reached the right end. "low", "high": its 95 %
    interval. "lost": share that reached no end within `steps`. "correct": right ones among those that reached an end.
    "return": mean. "starts": how many of the episodes open differently; greedy play repeats itself in the others."""
    agent, spec = model.agent, model.spec
    world = TensorWorld(spec.name, {**spec.kwargs, **(kwargs or {})}, episodes, split="eval", seed=seed)
    carry = agent.initial(episodes)
    outcome, total = torch.full((episodes,), RUNNING), torch.zeros(episodes)
    (key,) = spec.action
    data, truth = world.reset(balanced_options(Cues(spec), spec, episodes))
    starts = len(world.present()[0].unique())
    for _ in range(steps):
        told = {k: data[k].to(agent.device) for k in (*spec.obs, "is_first")}
        action, carry, _ = agent.policy(told, carry, Noise.mode())
        data, truth = world.step({key: action[key].cpu()})
        open_ = outcome == RUNNING
        total += torch.where(open_, data["reward"], 0.0)
        outcome = torch.where(open_ & data["is_last"], truth["outcome"], outcome)
        if bool((outcome != RUNNING).all()):
            break
    right, wrong = int((outcome == SUCCESS).sum()), int((outcome == WRONG).sum())
    rate, low, high = wilson(right, episodes)
    chose = right + wrong
    return {
        "score": rate, "low": low, "high": high, "lost": 1 - chose / episodes,
        "correct": right / chose if chose else float("nan"), "return": float(total.mean()),
        "starts": float(starts),
    }  # fmt: skip
