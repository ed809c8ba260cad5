"""What an update changed in the activations: the same inputs through the weights before and after.

The agent before plays; its observations, actions and resets are forced on all. Everything is read at the latents' mode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.nulls import exchange_rows
from torchmem.analysis.style import finish
from torchmem.result import Provenance, Result
from torchmem.surgery.model import Model
from torchmem.surgery.policy_distance import kl
from torchmem.training.world_views import array_worlds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PENALTY = 1e-2  # of the ridge, per step and standardised unit


@dataclasses.dataclass(frozen=True)
class ActivationChange(Result):
    """How far activations and policy move under other weights, on the inputs of the agent before. O others, S sites.

    moved: (O, S) RMS of the change over RMS of what varied before (1: as much as the whole signal). constant: (O, S)
    share of the squared change that is one shift, the same at every step. policy: (O,) KL(before || other), nats a
    step. same_action: (O,) share of steps with the same greedy action. value: (O,) mean change of the value.
    probes: target -> site -> row -> score on held-out episodes: accuracy, or R2 of a number (shown as -1 where it is
    below). Rows are "before" and each other twice: "old probe" reads its activations with the probe that was fitted
    before, "new probe" is fitted on them; "exchanged" is a probe before on labels that were exchanged between
    episodes: chance.
    """

    others: tuple[str, ...]
    sites: tuple[str, ...]
    moved: np.ndarray
    constant: np.ndarray
    policy: np.ndarray
    same_action: np.ndarray
    value: np.ndarray
    probes: dict[str, dict[str, dict[str, float]]]
    steps: int
    episodes: int

    def summary(self) -> str:
        lines = [f"{self.steps} steps, {self.episodes} episodes played by the agent before; its inputs forced on all",
                 f"{'':<20}{'KL, nats/step':>14}{'same action':>13}{'value':>9}"
                 + "".join(f"{s[-20:]:>22}" for s in self.sites)]  # fmt: skip
        for o, name in enumerate(self.others):
            pairs = zip(self.moved[o], self.constant[o])
            cells = "".join(f"{moved:>10.3f} ({constant:4.0%} shift)" for moved, constant in pairs)
            lines.append(f"{name:<20}{self.policy[o]:>14.4f}{self.same_action[o]:>13.1%}{self.value[o]:>+9.3g}{cells}")
        for target, by_site in self.probes.items():
            for site, rows in by_site.items():
                told = ", ".join(f"{row} {max(score, -1):.3f}" for row, score in rows.items())
                lines.append(f"{target} from {site}: {told}")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        place = np.arange(len(self.sites))
        width = 0.8 / len(self.others)
        for o, name in enumerate(self.others):
            ax.bar(place + o * width, self.moved[o], width, label=f"{name} (KL {self.policy[o]:.3g})")
        ax.set_xticks(place + 0.4 - width / 2, self.sites)
        return finish(ax, "", "change of activations,\nin units of their spread before", legend_columns=2)

    def table(self) -> dict[str, list]:
        """Columns for a CSV file."""
        rows = [(o, s) for o in range(len(self.others)) for s in range(len(self.sites))]
        return {
            "weights": [self.others[o] for o, _ in rows], "site": [self.sites[s] for _, s in rows],
            "moved": [float(self.moved[r]) for r in rows], "constant": [float(self.constant[r]) for r in rows],
            "policy_kl": [float(self.policy[o]) for o, _ in rows],
        }  # fmt: skip


def read_activation_change(
    before: Any,
    others: Mapping[str, Any],
    *,
    sites: str | Sequence[str] = ("memory", "actor.mlp"),
    targets: Sequence[str] = (),
    env: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    envs: int = 16,
    steps: int = 200,
    seed: int = 0,
) -> ActivationChange:
    """See the module. before, others: agents of one kind. sites: names; those that this agent lacks are left out.

    targets: keys of the world's truth to decode, one number per step; classes where they are whole numbers or bools.
    env, env_kwargs: default, the world that the agent was made for; `envs` copies of it play `steps` steps each.
    Raises ValueError where no site is there, or a target is not in the truth or constant.
    """
    model = Model(before)
    asked = [sites] if isinstance(sites, str) else list(sites)
    chosen = [name for name in asked if name in model.sites]
    if not chosen:
        raise ValueError(f"none of the sites {', '.join(asked)} exists in this {before.config.name} agent")
    batch, truth = _played(model, env or before.spec.name, env_kwargs or before.spec.kwargs, envs, steps, seed)
    episode = (np.cumsum(batch["is_first"].numpy(), 1) + 10_000 * np.arange(envs)[:, None]).reshape(-1)
    own_out, own = model.run_with_cache(batch, chosen, noise="mode")
    known = {name: _flat(own[name]) for name in chosen}
    labels = {name: _target(truth, name) for name in targets}
    probes: dict[str, dict[str, dict[str, float]]] = {t: {} for t in targets}
    halves = _halves(episode, seed)
    for target, y in labels.items():
        for site, x in known.items():
            exchanged = y[exchange_rows(episode, np.random.default_rng(seed))]
            probes[target][site] = {"before": _score(x, x, y, halves), "exchanged": _score(x, x, exchanged, halves)}
    shape = (len(others), len(chosen))
    moved, constant = np.zeros(shape), np.zeros(shape)
    policy, agree, value = np.zeros((3, len(others)))
    for o, (name, agent) in enumerate(others.items()):
        out, cache = Model(agent).run_with_cache(batch, chosen, noise="mode")
        for s, site in enumerate(chosen):
            there = _flat(cache[site])
            moved[o, s], constant[o, s] = _shift(known[site], there)
            for target, y in labels.items():
                rows = probes[target][site]
                rows[f"{name}, old probe"] = _score(known[site], there, y, halves)
                rows[f"{name}, new probe"] = _score(there, there, y, halves)
        policy[o], agree[o] = _policies(before, own_out.policy, out.policy)
        value[o] = float((out.value - own_out.value).mean())
    return ActivationChange(
        others=tuple(others), sites=tuple(chosen), moved=moved, constant=constant, policy=policy, same_action=agree,
        value=value, probes=probes, steps=envs * steps, episodes=len(np.unique(episode)),
        provenance=Provenance.here(seeds={"worlds": seed, "probes": seed}),
    )  # fmt: skip


def _played(
    model: Model, env: str, kwargs: Mapping[str, Any], envs: int, steps: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """What was seen and done, (B, T, ...), and the truth, (B, T, ...)."""
    with array_worlds(env, kwargs, envs, split="record", seed=seed) as worlds:
        with model.trace.play(steps, env=worlds, seed=seed, noise="mode", raw=False) as tracer:
            pass
    out = tracer.out
    batch = {**out.obs, **out.action, "is_first": out.is_first}
    return {k: v.cpu() for k, v in batch.items()}, {k: np.asarray(v) for k, v in out.truth.items()}


def _target(truth: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in truth:
        raise ValueError(f"no target {name!r} in the world's truth: it has {', '.join(sorted(truth))}")
    y = truth[name].reshape(truth[name].shape[0] * truth[name].shape[1], -1)
    if y.shape[1] != 1 or (y == y[0]).all():
        raise ValueError(f"target {name} is {'constant' if y.shape[1] == 1 else 'no single number'}: choose another")
    return y[:, 0]


def _flat(value: Tensor) -> np.ndarray:
    return value.detach().flatten(2).flatten(0, 1).double().numpy()


def _shift(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    change = after - before
    spread = np.sqrt(np.square(before - before.mean(0)).sum(1).mean())
    size = np.square(change).sum(1).mean()
    return float(np.sqrt(size) / max(spread, 1e-12)), float(np.square(change.mean(0)).sum() / size) if size else 0.0


def _policies(agent: Any, ours: Any, theirs: Any) -> tuple[float, float]:
    parts = [float(kl(agent.spec.action[k], ours[k], theirs[k]).mean()) for k in ours]
    same = torch.stack([_same(agent.spec.action[k].discrete, ours[k][0], theirs[k][0]) for k in ours])
    return sum(parts), float(same.all(0).float().mean())


def _same(discrete: bool, ours: Tensor, theirs: Tensor) -> Tensor:
    """(B, T) bool: the same greedy action; continuous ones within 0.1 in every dimension."""
    hit = ours.argmax(-1) == theirs.argmax(-1) if discrete else (ours - theirs).abs() <= 0.1
    return hit.flatten(2).all(-1) if hit.dim() > 2 else hit


def _halves(episode: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps to fit on and to test on: whole episodes, half of them each."""
    ids = np.random.default_rng(seed).permutation(np.unique(episode))
    fit = np.isin(episode, ids[: len(ids) // 2])
    return fit, ~fit


def _score(x_fit: np.ndarray, x_test: np.ndarray, y: np.ndarray, halves: tuple[np.ndarray, np.ndarray]) -> float:
    """Fit a ridge on one activations' first half, read the other's second half. Accuracy for classes, else R2."""
    fit, test = halves
    classes = np.unique(y) if y.dtype.kind in "biu" else None
    aim = (y[:, None] == classes).astype(float) if classes is not None else y[:, None].astype(float)
    mean, spread = x_fit[fit].mean(0), x_fit[fit].std(0) + 1e-6
    a, b = (x_fit[fit] - mean) / spread, (x_test[test] - mean) / spread
    centre = aim[fit].mean(0)
    gram = a.T @ a + PENALTY * len(a) * np.eye(a.shape[1])
    guess = b @ np.linalg.solve(gram, a.T @ (aim[fit] - centre)) + centre
    if classes is not None:
        return float((classes[guess.argmax(1)] == y[test]).mean())
    error = np.square(guess - aim[test]).sum()
    return float(1 - error / np.square(aim[test] - aim[test].mean()).sum())
