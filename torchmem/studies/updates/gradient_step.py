"""One gradient step taken apart: which loss term moved which module, and each part as a WeightDelta to replay or undo.

Terms are the agent's own named losses. What a term weighs in the total is found by differentiating the total, so that
the terms' gradients sum to the gradient of the whole loss, for any agent.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.result import Provenance, Result
from torchmem.studies.updates.branch import State, Words, open_experiment
from torchmem.surgery.weight_delta import WeightDelta
from torchmem.surgery.weight_edit import weights_hash
from torchmem.training.rollout_experiment import RolloutExperiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOTAL = "total"


@dataclasses.dataclass(frozen=True)
class StepShares(Result):
    """L loss terms (the last is "total") x M modules.

    norm: (L, M) length of each term's gradient in each module. along: (L,) share of the total gradient that the term
    makes: its projection on it over its squared length; sums to 1 over terms. cosine: (L, L) between terms; NaN where
    one is zero. step: (M,) length of what the optimiser really did. step_along: cosine of that with minus the total
    gradient.
    """

    terms: tuple[str, ...]
    modules: tuple[str, ...]
    norm: np.ndarray
    along: np.ndarray
    cosine: np.ndarray
    step: np.ndarray
    step_along: float

    def summary(self) -> str:
        heads = "".join(f"{m[-14:]:>16}" for m in self.modules)
        lines = [f"{'gradient length by term':<26}{heads}{'of total':>12}"]
        for k, term in enumerate(self.terms):
            lines.append(f"{term:<26}" + "".join(f"{v:>16.4g}" for v in self.norm[k]) + f"{self.along[k]:>12.1%}")
        lines.append(f"{'the step itself':<26}" + "".join(f"{v:>16.4g}" for v in self.step)
                     + f"   cosine with -gradient {self.step_along:+.3f}")  # fmt: skip
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Share of each module's summed gradient lengths, by term."""
        ax = self.axes(ax)
        shares = self.norm[:-1] / np.maximum(self.norm[:-1].sum(0), 1e-30)
        bottom = np.zeros(len(self.modules))
        for k, term in enumerate(self.terms[:-1]):
            ax.bar(self.modules, shares[k], bottom=bottom, label=f"{term} ({self.along[k]:.0%} of the total)")
            bottom += shares[k]
        ax.set_ylabel("share of gradient length")
        ax.tick_params(axis="x", rotation=30)
        ax.legend(frameon=False, fontsize=7)
        return ax


@dataclasses.dataclass(frozen=True)
class GradientStep:
    """shares: who moved what. terms: loss term -> WeightDelta of -lr x its gradient, summing to terms["total"]. step:
    what the optimiser really did, from `start`: `step.apply(start)` replays it, `(-step).apply(...)` undoes it."""

    shares: StepShares
    terms: dict[str, WeightDelta]
    step: WeightDelta
    after: State


def isolate_step(start: State, words: Words, *, lr: float = 1.0, seed: int = 0, depth: int = 1) -> GradientStep:
    """Take one optimiser step from `start` on fresh experience of the configured world, and take it apart.

    words: the configuration, as for `train`. lr: scale of the terms' deltas (the optimiser has its own). depth: modules
    are the first words of a parameter's name. Raises ConfigError, ValueError where the world does not fit.
    """
    with TemporaryDirectory(prefix="torchmem-step-") as scratch:
        x = open_experiment(words, start, seed, scratch)
        try:
            batch, noise = _batch(x)
            terms = term_gradients(x.agent, batch, noise)
            before = {name: p.detach().clone() for name, p in x.agent.named_parameters()}
            if isinstance(x, RolloutExperiment):
                x.learner.update(batch)
            else:
                x.learner.update(batch, noise)
            after = State(copy.deepcopy(x.agent), copy.deepcopy(x.learner.state_dict()))
        finally:
            x.close()
    step = WeightDelta.between(before, dict(after.agent.named_parameters()))
    trained = set(terms[TOTAL])
    deltas = {term: WeightDelta({n: -lr * g for n, g in grads.items()}) for term, grads in terms.items()}
    modules = tuple(dict.fromkeys(".".join(n.split(".")[:-1][:depth]) for n in sorted(trained)))

    def by_module(delta: WeightDelta) -> list[float]:
        return [delta.restrict(f"{m}.*").norm() for m in modules]

    names = [t for t in deltas if t != TOTAL] + [TOTAL]
    total = deltas[TOTAL]
    length = total.dot(total)
    shares = StepShares(
        terms=tuple(names), modules=modules, norm=np.array([by_module(deltas[t]) for t in names]) / lr,
        along=np.array([deltas[t].dot(total) / length if length else np.nan for t in names]),
        cosine=np.array([[deltas[a].cosine(deltas[b]) for b in names] for a in names]),
        step=np.array(by_module(step)), step_along=step.restrict(sorted(trained)).cosine(total),
        provenance=Provenance.here(weights=weights_hash(before), config={"words": list(words)}, seeds={"batch": seed}),
    )  # fmt: skip
    return GradientStep(shares, deltas, step, after)


def term_gradients(agent: Any, batch: Mapping[str, Tensor], noise: Noise) -> dict[str, dict[str, Tensor]]:
    """Loss term -> parameter -> gradient of the term as it enters the total; "total" for the whole. Zeros included."""
    out = agent.loss(batch, noise)
    names, parameters = zip(*agent.trained(), strict=True)
    live = {term: value for term, value in out.losses.items() if value.requires_grad}
    weights = torch.autograd.grad(out.total, list(live.values()), retain_graph=True, allow_unused=True)
    found = {term: {n: torch.zeros_like(p) for n, p in zip(names, parameters)} for term in out.losses}
    for (term, value), weight in zip(live.items(), weights, strict=True):
        if weight is not None:
            found[term] = _filled(names, parameters, value, weight)
    found[TOTAL] = _filled(names, parameters, out.total, None)
    return found


def _filled(names: Any, parameters: Any, value: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(value, parameters, weight, retain_graph=True, allow_unused=True)
    rows = zip(names, parameters, gradients, strict=True)
    return {n: torch.zeros_like(p) if g is None else g.detach() for n, p, g in rows}


def _batch(x: Any) -> tuple[Mapping[str, Tensor], Noise]:
    """One minibatch of fresh experience."""
    if isinstance(x, RolloutExperiment):
        x.collect()
        order = torch.randperm(x.envs.n, generator=x.sampling, device=x.sampling.device)[: x.batch]
        return x.rollout.columns(order), Noise.mode()
    while not x.ready():
        x.collect()
    batch = x.replay.sample(x.batch)
    batch.pop("index")
    noise = x.agent.training_noise(x.learner.batch, x.learner.length, x.learner.generator)
    return {k: v.to(x.device) for k, v in batch.items()}, noise
