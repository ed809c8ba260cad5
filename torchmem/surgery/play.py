"""Rollouts on the bench: the policy acts step by step, in live worlds or on given observations, and sites are seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.surgery.passes import Bench
from torchmem.surgery.request import Request, WrongInput, observed


class Played(NamedTuple):
    """What happened, (B, T, ...). Steps after `is_last` belong to the next episode of the row."""

    obs: dict[str, Tensor]
    action: dict[str, Tensor]
    reward: Tensor
    is_first: Tensor
    is_last: Tensor
    is_terminal: Tensor
    truth: dict[str, Tensor]  # for the experimenter; the policy never sees it
    carry: Any  # after the last step


def live(
    agent: Any,
    steps: int,
    obs: Any = None,
    envs: int = 4,
    env: Any = None,
    seed: int = 0,
    carry: Any = None,
    noise: Literal["mode"] | None = None,
) -> Request:
    """A request to play `steps` steps.

    In live worlds: `env` is anything that steps as VectorEnv does; default, `envs` copies of the agent's own world on
    recording seeds from `seed`. Or on `obs` (as for `request.sequence`; the actions are the policy's and change
    nothing). noise: None samples from `seed`, "mode" acts greedily. Raises WrongInput.
    """
    if obs is not None:
        seen, first = observed(agent, obs, carry)
        rows, length = first.shape
        if steps not in (length, None):
            raise WrongInput(f"steps={steps}, but the observations have {length}")
        worlds = None
    else:
        from torchmem.envs.collector import leaking
        from torchmem.envs.vector import VectorEnv  # not for those who only look at given observations

        worlds = env if env is not None else VectorEnv(
            agent.spec.name, agent.spec.kwargs, envs, split="record", seed=seed, on_error="raise"
        )
        worlds = leaking(worlds, agent.spec)
        seen, first, rows, length = {}, None, worlds.n, steps
    if length < 1:
        raise WrongInput(f"steps must be at least 1, got {length}")
    generator = torch.Generator(agent.device).manual_seed(seed)
    draws = Noise.mode() if noise == "mode" else agent.acting_noise(rows * length, generator)
    start = agent.initial(rows) if carry is None else carry
    return Request("play", rows, length, start, _by_step(draws, rows, length), seen, None, first, worlds)


def play(bench: Bench, request: Request) -> Played:
    """Run it. Every step is one acting pass on the bench."""
    agent, carry, actions = bench.tree, request.carry, None
    steps: list[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Tensor]]] = []
    for t in range(request.steps):
        if request.worlds is None:
            assert request.is_first is not None
            data: dict[str, Tensor] = {key: value[:, t] for key, value in request.obs.items()}
            data["is_first"], truth = request.is_first[:, t], {}
        else:
            raw, raw_truth = request.worlds.step(actions)
            data = {key: torch.as_tensor(value, device=agent.device) for key, value in raw.items()}
            truth = {key: torch.as_tensor(value) for key, value in raw_truth.items()}
        bench.truth = truth
        seen = {key: data[key] for key in (*agent.spec.obs, "is_first")}
        chosen, carry, _ = agent.policy(seen, carry, _step_noise(request.noise, t))
        if request.worlds is not None:
            for value in chosen.values():
                value[data["is_last"]] = 0
            actions = {key: value.detach().cpu().numpy() for key, value in chosen.items()}
        steps.append((data, truth, chosen))
    bench.truth = None
    first = torch.stack([data["is_first"] for data, _, _ in steps], 1)
    none = torch.zeros_like(first)

    def stacked(which: int, keys: Any) -> dict[str, Tensor]:
        return {key: torch.stack([step[which][key] for step in steps], 1) for key in keys}

    flags = [key for key in ("reward", "is_last", "is_terminal") if key in steps[0][0]]
    told = stacked(0, flags)
    return Played(
        stacked(0, agent.spec.obs), stacked(2, steps[0][2]), told.get("reward", none.float()), first,
        told.get("is_last", none), told.get("is_terminal", none), stacked(1, steps[0][1]), carry,
    )


def _by_step(noise: Noise, rows: int, steps: int) -> Noise:
    """Noise of rows * steps acting steps, as (B, T, ...)."""

    def cut(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {key: cut(item) for key, item in value.items()}
        return value.unflatten(0, (rows, steps))

    return Noise(posterior=cut(noise.posterior), prior=cut(noise.prior), action=cut(noise.action))


def _step_noise(noise: Noise, t: int) -> Noise:
    def at(value: Any) -> Any:
        if value is None:
            return None
        return {key: item[:, t] for key, item in value.items()} if isinstance(value, Mapping) else value[:, t]

    return Noise(posterior=at(noise.posterior), prior=at(noise.prior), action=at(noise.action))
