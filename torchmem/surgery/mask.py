"""fit_mask: the smallest set of weights that still acts like the agent, found by gradients through its recurrence.

    result = fit_mask(model, batch)          # batch: complete episodes, (B, T, ...)
    print(result.summary())
    with model.edited([result.mask]):
        ...                                  # the circuit alone acts

One logit per weight (or row, or column), the agent's weights frozen; the loss is the KL from the full policy to the
masked one along forced sequences, plus a penalty on what is kept (gates.py).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.result import Provenance
from torchmem.surgery import gates
from torchmem.surgery.gates import GATES, PENALTIES, Cost, Gate, Granularity, Penalty
from torchmem.surgery.mask_cleanup import cleaned, constants
from torchmem.surgery.mask_controls import Masks, measure
from torchmem.surgery.mask_result import MaskResult
from torchmem.surgery.policy_distance import Bed, acting_path
from torchmem.surgery.weight_edit import matching, weights_hash

log = logging.getLogger("torchmem")


@dataclasses.dataclass(frozen=True)
class MaskFit:
    """How a mask is sought. Every field is a keyword of `fit_mask`."""

    gate: Gate = "gumbel_st"  # how a logit becomes kept or dropped
    penalty: Penalty | None = None  # on what is kept; None: "none" for topk, else "sum_prob"
    granularity: Granularity = "weight"  # what one gate covers
    # of sum_prob, sum_logit, l0: price of one kept weight in nats. gumbel_st is sticky: a logit that rose to the bound
    # before the ramp stays for a tenth of that, as its noise still reaches 0 where the sigmoid is flat.
    alpha: float = 3e-4
    target: float = 0.01  # kept share that topk and lagrangian aim at
    epsilon: float = 0.01  # nats that constrained allows
    steps: int = 5000  # at most
    rate: float = 1e-2  # Adam's learning rate on the logits
    dual_rate: float | None = None  # of the multipliers; None: 0.01 for constrained, 1.0 for lagrangian
    clip: float = 1.0  # largest gradient norm
    start: float = 2.0  # first logit: sigmoid(2) = 0.88 kept
    tau: float = 1.0  # temperature of gumbel_st
    samples: int = 1  # masks drawn per step
    rows: int = 32  # sequences per step, drawn from the batch
    count: int | None = None  # weights to keep in the end; None: those with logit > 0 (topk, lagrangian: target)
    check: int = 50  # steps between two looks at the kept count
    patience: int = 6  # looks with less than 1 % of change, after the ramp, that end the search; 0: never
    cleanup: bool = True  # drop kept weights that change no policy in the end
    singles: int = 200  # kept weights whose loss is measured one by one, each with a pass over the batch
    seed: int = 0

    def __post_init__(self) -> None:
        for name, options in (
            ("gate", GATES), ("penalty", (None, *PENALTIES)), ("granularity", ("weight", "row", "column"))
        ):  # fmt: skip
            if getattr(self, name) not in options:
                known = ", ".join(str(option) for option in options)
                raise ValueError(f"fit_mask has no {name} {getattr(self, name)!r}: choose from {known}")
        if self.gate == "topk" and self.cost not in ("none",):
            raise ValueError(f"gate 'topk' keeps `target` exactly, so penalty {self.penalty!r} has no effect: leave it")
        if self.cost == "l0" and self.gate != "hard_concrete":
            raise ValueError("penalty 'l0' is the one of gate 'hard_concrete': use both, or penalty='sum_prob'")
        if not 0 < self.target <= 1 or self.epsilon <= 0 or min(self.steps, self.samples, self.rows, self.check) < 1:
            raise ValueError("fit_mask needs 0 < target <= 1, epsilon > 0, and steps, samples, rows, check >= 1")

    @property
    def cost(self) -> Penalty:
        return self.penalty or ("none" if self.gate == "topk" else "sum_prob")

    @property
    def exact(self) -> bool:
        return self.gate == "topk" or self.cost == "lagrangian"


@torch.enable_grad()
def fit_mask(
    model: Any,
    batch: Mapping[str, Tensor],
    *,
    names: str | Iterable[str] | None = None,
    weights: Tensor | None = None,
    carry: Any = None,
    noise: Noise | None = None,
    evaluate: Callable[[Any], float | Mapping[str, float]] | None = None,
    teacher: Any = None,
    chance: float | None = None,
    **settings: Any,
) -> MaskResult:
    """Find a circuit and measure it against its controls.

    model: a `Model` without edits, or an agent. batch[key] (B, T, ...): the observations, actions and `is_first` of
    complete episodes, best from the agent's own play, balanced over what it must remember. names: parameters to mask,
    exact or shell patterns; default: all of the acting path with two or more axes. weights (B, T): what each step
    counts, such as answering steps as much as waiting ones. noise: one draw for all passes (default: mode). evaluate:
    f(model) -> score in the world, called under the full model, the circuit and each control; it then judges, in place
    of the agreement with the full policy. It may return more numbers beside "score"; they are kept. teacher: another
    agent for the same world, whose policy is to be imitated (a control: can a mask make this function from weights that
    do not have it?); default: the model itself. chance: the score of guessing. settings: see `MaskFit`.
    Raises ValueError for a wrong setting, a missing key, or weights that do not reach the policy.
    """
    fit = _settings(settings)
    if getattr(model, "edits", None):
        raise ValueError("fit_mask needs the model as it is: leave `model.edited(...)` first")
    agent = getattr(model, "agent", model)
    bed = Bed.of(agent, batch, weights, carry, noise)
    if teacher is not None:
        bed.full = Bed.of(getattr(teacher, "agent", teacher), batch, weights, None, noise).full
    path = acting_path(bed)
    chosen = _chosen(path, bed.own, names)
    began = time.monotonic()
    search = _Search(bed, chosen, fit)
    history = search.run()
    masks = search.hard()
    dropped = 0
    if fit.cleanup:
        masks, dropped = cleaned(bed, masks)
    seconds = time.monotonic() - began
    found = measure(bed, masks, None if evaluate is None else lambda: evaluate(model), fit.seed, fit.singles)
    return MaskResult(
        masks={name: mask.cpu().numpy() for name, mask in masks.items()},
        logits={name: logit.detach().cpu().numpy() for name, logit in search.logits.items()},
        base=weights_hash(bed.own),
        sizes={
            "maskable": sum(bed.own[name].numel() for name in chosen),
            "acting path": sum(bed.own[name].numel() for name, on in path.items() if on),
            "agent": sum(value.numel() for value in bed.own.values()),
        },
        history=history,
        constant=constants(bed, masks),
        cleaned=dropped,
        scored=evaluate is not None,
        chance=chance,
        seconds=seconds,
        **found,
        provenance=Provenance.here(config=dataclasses.asdict(fit), seeds={"fit": fit.seed}, caveats=agent.spec.caveats),
    )


def _settings(settings: Mapping[str, Any]) -> MaskFit:
    known = {field.name for field in dataclasses.fields(MaskFit)}
    wrong = [name for name in settings if name not in known]
    if wrong:
        raise ValueError(f"fit_mask has no setting {wrong[0]!r}; it has {', '.join(sorted(known))}")
    return MaskFit(**settings)


def _chosen(path: Mapping[str, bool], own: Mapping[str, Tensor], names: str | Iterable[str] | None) -> list[str]:
    if names is None:
        return [name for name, on in path.items() if on and own[name].dim() >= 2]
    chosen = matching(path, names)
    idle = [name for name in chosen if not path[name]]
    if idle:
        raise ValueError(f"{idle[0]} does not reach the policy, so no mask of it can be found: leave it out")
    flat = [name for name in chosen if own[name].dim() < 2]
    if flat:
        raise ValueError(f"{flat[0]} has one axis: masks are for weights, biases and scales stay")
    return chosen


class _Search:
    """The logits and how they move."""

    def __init__(self, bed: Bed, names: list[str], fit: MaskFit) -> None:
        self.bed, self.names, self.fit = bed, names, fit
        self.logits: dict[str, Tensor] = {}
        for name in names:
            weight = bed.own[name]
            shape = gates.gate_shape(weight.shape, fit.granularity)
            logit = weight.new_full(shape, fit.start)
            if fit.gate == "topk":  # scores: large weights first, in units of their tensor; a few steps undo it
                logit += 0.1 * _collapsed(weight.abs() / weight.std().clamp(min=1e-12), shape)
            self.logits[name] = logit.requires_grad_()
        self.sizes = [bed.own[name].numel() // self.logits[name].numel() for name in names]
        self.total = sum(bed.own[name].numel() for name in names)
        rate = fit.dual_rate if fit.dual_rate is not None else {"constrained": 0.01}.get(fit.cost, 1.0)
        self.cost = Cost(fit.cost, fit.gate, self.sizes, fit.alpha, fit.target, fit.epsilon, rate)

    def run(self) -> dict[str, np.ndarray]:
        fit, values = self.fit, list(self.logits.values())
        rows = torch.Generator().manual_seed(fit.seed)
        generator = torch.Generator(self.bed.is_first.device).manual_seed(fit.seed + 1)
        optimizer = torch.optim.Adam(values, lr=fit.rate)
        log_rows: list[tuple[int, float, int, float]] = []
        recent, calm, settled = 0.0, 0, self.hard()
        for step in range(fit.steps):
            progress = gates.ramp(step, fit.steps)
            bed = self.bed.some(fit.rows, rows)
            kl = torch.stack([bed.kl(bed.policy(self.drawn(generator, progress))) for _ in range(fit.samples)]).mean()
            objective = self.cost(values, kl, progress)
            for value, grad in zip(values, torch.autograd.grad(objective, values), strict=True):
                value.grad = grad
            torch.nn.utils.clip_grad_norm_(values, fit.clip)
            optimizer.step()
            with torch.no_grad():
                for value in values:
                    value.clamp_(-gates.BOUND, gates.BOUND)
            recent = kl.item() if step == 0 else 0.9 * recent + 0.1 * kl.item()
            if (step + 1) % fit.check == 0 or step + 1 == fit.steps:
                now = self.hard()
                log_rows.append((step + 1, recent, _kept(now), self.share()))
                log.debug("mask step %d: KL %.4f, %d kept", *log_rows[-1][:3])
                if progress < 1 or self.moved(settled, now) > max(2, 0.01 * _kept(now)):
                    settled, calm = now, 0
                else:
                    calm += 1
                if fit.patience and calm >= fit.patience:
                    break
        columns = np.array(log_rows, dtype=np.float64)
        return {name: columns[:, i] for i, name in enumerate(("step", "kl", "kept", "share"))}

    def drawn(self, generator: torch.Generator, progress: float) -> dict[str, Tensor]:
        """Effective weights under one sample of the gates."""
        fit = self.fit
        if fit.gate == "topk":  # from all weights to the target, by equal factors
            count = max(1, round(self.total * fit.target**progress))
            values = gates.keep_top(list(self.logits.values()), self.sizes, count)
        else:
            values = [gates.draw(fit.gate, logit, generator, fit.tau) for logit in self.logits.values()]
        return {name: self.bed.own[name] * value for name, value in zip(self.names, values, strict=True)}

    def share(self) -> float:
        """Expected kept share."""
        if self.fit.gate == "topk":
            return _kept(self.hard()) / self.total
        with torch.no_grad():
            return self.cost.share(list(self.logits.values())).item()

    def moved(self, before: Masks, now: Masks) -> int:
        """How far two hard masks are apart: in their counts or, where the count is given, in their places."""
        if self.fit.exact or self.fit.count is not None:
            return sum(int((before[name] != now[name]).sum()) for name in now)
        return abs(_kept(before) - _kept(now))

    def hard(self) -> Masks:
        """The mask: logits above 0, or the highest where a count is asked for. In the shape of the weights."""
        fit, values = self.fit, [logit.detach() for logit in self.logits.values()]
        count = fit.count if fit.count is not None else max(1, round(fit.target * self.total)) if fit.exact else None
        kept = [value > 0 for value in values] if count is None else gates.top(values, self.sizes, count)
        return {n: k.expand(self.bed.own[n].shape).clone() for n, k in zip(self.names, kept, strict=True)}


def _collapsed(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Mean over the axes that a gate covers."""
    axes = [axis for axis, size in enumerate(shape) if size == 1 and value.shape[axis] != 1]
    return value.mean(axes, keepdim=True) if axes else value


def _kept(masks: Masks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())
