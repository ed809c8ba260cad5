"""MaskResult: a circuit, what it keeps, and how it stands against its controls."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchmem.result import Result
from torchmem.surgery.weight_mask import WeightMask

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAITHFUL = 0.9  # share of what the full model does beyond a random mask
SPARSE = 0.5  # kept share of the maskable weights above which a mask isolates nothing
HARMED = 1e-4  # nats: a kept weight whose loss costs less is not needed by itself


@dataclasses.dataclass(frozen=True)
class MaskResult(Result):
    """What `fit_mask` found.

    scores: by mask ("full", "circuit", "complement", "empty", "random 0" to "random 4" as dense in each parameter,
    "magnitude" and "attribution" with as many weights, "no memory": the full model reset at each step), each with kl
    (nats from the full policy), agreement (share of steps with the same greedy action), score (of `evaluate`; NaN
    without) and kept. minimality: rise of the KL and drop of the agreement for single weights dropped.
    """

    masks: Mapping[str, np.ndarray]  # parameter name -> bool
    logits: Mapping[str, np.ndarray]  # parameter name -> logits of its gates
    base: str  # hash of the weights the mask belongs to
    sizes: Mapping[str, int]  # weights that were maskable, on the acting path, and of the whole agent
    history: Mapping[str, np.ndarray]  # step, kl (running mean under sampled masks), kept, expected share
    scores: Mapping[str, Mapping[str, float]]
    minimality: Mapping[str, np.ndarray]  # "kl" in nats, "agreement"
    constant: Mapping[str, int]  # kept weights that read an input which never varies
    cleaned: int  # weights that were kept and lay on no path to an action
    scored: bool  # `evaluate` was given, and judges; otherwise the agreement does
    chance: float | None = None  # score of an agent that guesses, as the caller knows it
    seconds: float = math.nan  # wall time of the search and of its clean-up, without the controls

    @property
    def mask(self) -> WeightMask:
        """The circuit as an edit: `with model.edited([result.mask])`."""
        return WeightMask({name: torch.from_numpy(mask.copy()) for name, mask in self.masks.items()}, base=self.base)

    @property
    def kept(self) -> int:
        return int(sum(mask.sum() for mask in self.masks.values()))

    def fractions(self) -> dict[str, float]:
        """Kept weights against each denominator. Biases and norms outside the mask are not counted as kept."""
        return {name: self.kept / size for name, size in self.sizes.items()}

    def tensors(self) -> dict[str, tuple[int, int]]:
        """(kept, all) of each masked parameter."""
        return {name: (int(mask.sum()), mask.size) for name, mask in self.masks.items()}

    def roles(self, depth: int = 2) -> dict[str, tuple[int, int]]:
        """(kept, all) by the first `depth` words of the module path: "dynamics.core", "behaviour.policy"."""
        out: dict[str, tuple[int, int]] = {}
        for name, (kept, size) in self.tensors().items():
            role = ".".join(name.split(".")[:-1][:depth]) or name
            before = out.get(role, (0, 0))
            out[role] = (before[0] + kept, before[1] + size)
        return out

    def units(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each parameter that kept weights touch; weights (out, in, ...) or (blocks, out, in)."""
        out = {}
        for name, mask in self.masks.items():
            first = 1 if mask.ndim == 3 else 0
            rest = tuple(a for a in range(mask.ndim) if a != first and not (mask.ndim == 3 and a == 0))
            other = tuple(a for a in range(mask.ndim) if a != first + 1 and not (mask.ndim == 3 and a == 0))
            out[name] = (int(mask.any(rest).sum()), int(mask.any(other).sum()))
        return out

    # Judgement -------------------------------------------------------------------------------------------------------

    def measure(self, name: str) -> float:
        """What judges: the score in the world if there is one, else the agreement. "random": the mean of its draws."""
        key = "score" if self.scored else "agreement"
        if name == "random":
            return float(np.mean([s[key] for k, s in self.scores.items() if k.startswith("random")]))
        return self.scores[name][key]

    @property
    def random_kl(self) -> float:
        return float(np.mean([s["kl"] for k, s in self.scores.items() if k.startswith("random")]))

    @property
    def floor(self) -> float:
        """What needs no circuit: the mean of the random masks or, if that is higher, chance."""
        return max(self.measure("random"), -math.inf if self.chance is None else self.chance)

    def faithfulness(self, name: str = "circuit") -> float:
        """(R - floor) / (R_full - floor); below 0 where worse than that; NaN where full is not above the floor."""
        return float("nan") if self.pointless else (self.measure(name) - self.floor) / self._gap

    @property
    def _gap(self) -> float:
        return self.measure("full") - self.floor

    @property
    def pointless(self) -> bool:
        """The full model is not clearly above random masks of the circuit's density, or chance: no mask can be shown to
        work."""
        key = "score" if self.scored else "agreement"
        spread = float(np.std([s[key] for k, s in self.scores.items() if k.startswith("random")]))
        level = max(abs(self.measure("full")), abs(self.floor))
        beyond = self.measure("full") - self.measure("random")
        return not (beyond > 3 * spread and self._gap > 0.1 * level)

    @property
    def found(self) -> bool:
        """A faithful, sparse circuit."""
        explains = self.scores["circuit"]["kl"] <= (1 - FAITHFUL) * self.random_kl
        sparse = self.kept <= SPARSE * self.sizes["maskable"]
        return not self.pointless and explains and sparse and self.faithfulness() >= FAITHFUL

    def verdict(self) -> str:
        """One sentence, with what speaks against it."""
        if self.pointless:
            return (
                "null: the full model is no better than chance or random masks as dense as the circuit "
                f"({self.measure('full'):.3f} against {self.floor:.3f}), so nothing was isolated"
            )
        if not self.found:
            share = self.fractions()["maskable"]
            return (
                f"no faithful sparse mask: faithfulness {self.faithfulness():.2f}, "
                f"KL {self.scores['circuit']['kl']:.3f} nats (random {self.random_kl:.3f}), "
                f"{share:.1%} of the maskable weights kept"
            )
        notes = []
        if self.faithfulness("complement") >= FAITHFUL:
            notes.append("the rest acts the same without it, so it is not the only circuit")
        if self.scores["no memory"]["kl"] <= (1 - FAITHFUL) * self.random_kl:
            notes.append("reset at every step the full model acts the same, so these data need no memory")
        return "; ".join([f"circuit: faithfulness {self.faithfulness():.2f}", *notes])

    def summary(self) -> str:
        """Verdict, counts against three denominators, and a table of the controls."""
        shares = ", ".join(f"{share:.3%} of {name} ({self.sizes[name]})" for name, share in self.fractions().items())
        lines = [self.verdict(), f"kept {self.kept} weights: {shares}; {self.cleaned} dead ends dropped"]
        lines += [f"found in {self.seconds / 60:.1f} minutes"] if math.isfinite(self.seconds) else []
        lines += [f"  {role:<28} {kept:>8} of {size}" for role, (kept, size) in self.roles().items()]
        lines.append(f"{'mask':<14} {'KL/nats':>9} {'agreement':>10} {'score':>8} {'F':>7}")
        for name, numbers in self.scores.items():
            score = f"{numbers['score']:8.3f}" if math.isfinite(numbers["score"]) else f"{'-':>8}"
            faith = float("nan") if name == "no memory" and self.scored else self.faithfulness(name)
            shown = f"{faith:7.2f}" if math.isfinite(faith) else f"{'-':>7}"
            lines.append(f"{name:<14} {numbers['kl']:9.4f} {numbers['agreement']:10.3f} {score} {shown}")
        rises = self.minimality["kl"]
        if rises.size:
            needed = float((rises > HARMED).mean())
            lines.append(
                f"minimality: dropping one kept weight costs {np.median(rises):.2g} nats (median of {rises.size}); "
                f"{needed:.0%} cost more than {HARMED:g}"
            )
        if any(self.constant.values()):
            total = sum(self.constant.values())
            lines.append(f"constants in disguise: {total} kept weights read a value that never varies")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        """What judges, for the circuit and each control; random draws as points."""
        ax = self.axes(ax)
        names = [n for n in self.scores if not n.startswith("random") and math.isfinite(self.measure(n))]
        names.insert(names.index("circuit") + 1, "random")
        ax.bar(names, [self.measure(n) for n in names], color=["C1" if n == "circuit" else "C0" for n in names])
        key = "score" if self.scored else "agreement"
        draws = [s[key] for k, s in self.scores.items() if k.startswith("random")]
        ax.plot(["random"] * len(draws), draws, "k.", label="draws")
        ax.set_ylabel("score" if self.scored else "agreement with the full policy")
        ax.set_title(f"{self.kept} weights, {self.fractions()['acting path']:.2%} of the acting path")
        ax.tick_params(axis="x", labelrotation=45)
        ax.legend()
        return ax


def mask_stability(masks: Sequence[WeightMask]) -> dict[str, float]:
    """Mean overlap (IoU) of masks found from several seeds, and what as dense masks at random places would have.

    Raises ValueError for fewer than two.
    """
    pairs = list(itertools.combinations(masks, 2))
    if not pairs:
        raise ValueError("stability needs the masks of two seeds or more")
    return {
        "iou": float(np.mean([a.iou(b) for a, b in pairs])),
        "chance": float(np.mean([a.expected_iou(b) for a, b in pairs])),
        "least": float(min(a.iou(b) for a, b in pairs)),
    }
