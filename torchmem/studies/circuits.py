"""study_circuits: the fewest weights with which the agent still solves its world, beside all that must fail.

    result = study_circuits(torchmem.load("runs/x"), "circuits/x")

Masks are sought for several prices of a weight (mask.py); of those that succeed as often as the whole agent, within
0.02, the smallest is the circuit. It is then sought again from other seeds, and, as a control, on an untrained and on a
shuffled network, which are asked to imitate the same policy: a mask can make a function that was not there. All that is
reported comes from episodes that no search has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.result import Provenance, Result
from torchmem.studies.circuit_anatomy import anatomy, degrees
from torchmem.studies.circuit_result import CircuitResult
from torchmem.studies.folder import StudyFolder
from torchmem.studies.mask_play import full_play, play_score
from torchmem.surgery.gates import top
from torchmem.surgery.mask import fit_mask
from torchmem.surgery.mask_controls import Masks, controls
from torchmem.surgery.mask_result import MaskResult, mask_stability
from torchmem.surgery.model import Model, untrained
from torchmem.surgery.policy_distance import Bed
from torchmem.surgery.weight_edit import weights_hash
from torchmem.surgery.weight_mask import WeightMask

log = logging.getLogger("torchmem")
NEAR = 0.02  # what a circuit may lose of the full agent's success
SELECT, REPORT = 1_000, 2_000  # seeds of the episodes that choose and of those that are reported, beside the study's


def study_circuits(
    model: Any,
    out: str | Path,
    *,
    alphas: Sequence[float] = (3e-4, 5e-4, 1e-3),
    seeds: int = 3,
    rows: int = 256,
    episodes: int = 500,
    steps: int = 80,
    fit_steps: int = 3000,
    rate: float = 2e-2,
    wander: float = 0.1,
    singles: int = 200,
    seed: int = 0,
    **fit: Any,
) -> dict[str, Result]:
    """Find a circuit and its controls, written to the folder `out`; searches done earlier are read.

    alphas: prices of one kept weight, in nats. seeds: masks of the chosen alpha. rows: episodes that a search sees.
    episodes: of each score. steps: an episode is given to choose. fit_steps, rate, fit: of the search, see `MaskFit`.
    wander: share of random actions in the episodes of the search. singles: weights that are dropped one by one.
    """
    settings = {
        "alphas": list(alphas), "seeds": seeds, "rows": rows, "episodes": episodes, "steps": steps, "singles": singles,
        "fit_steps": fit_steps, "rate": rate, "wander": wander, "fit": fit, "seed": seed,
        "weights": weights_hash(model.agent), "world": [model.spec.name, dict(model.spec.kwargs)],
    }  # fmt: skip
    folder = StudyFolder(out, "circuits", settings)
    provenance = folder.provenance(model, {"study": seed})
    batch, counts = full_play(model, rows, steps=steps, wander=wander, seed=seed)

    def search(who: Any, alpha: float, number: int, teacher: Any = None, **how: Any) -> MaskResult:
        return fit_mask(
            who, batch, weights=counts, teacher=teacher, alpha=alpha, seed=seed + number, steps=fit_steps, rate=rate,
            evaluate=lambda m: play_score(m, episodes=episodes, steps=steps, seed=seed + SELECT), chance=0.5,
            singles=50, **{**fit, **how},
        )  # fmt: skip

    found: dict[float, MaskResult] = {}
    for alpha in alphas:
        part = folder.part(f"search_{alpha:g}", lambda alpha=alpha: search(model, alpha, 0))
        assert isinstance(part, MaskResult)
        found[alpha] = part
    minutes = sum(result.seconds for result in found.values()) / 60 / len(found)
    alpha = chosen(found)
    masks = [found[alpha]]
    for number in range(1, seeds):
        part = folder.part(f"seed_{number}", lambda number=number: search(model, alpha, number))
        assert isinstance(part, MaskResult)
        masks.append(part)
    others = {}
    size = {"gate": "topk", "penalty": None, "target": masks[0].kept / masks[0].sizes["maskable"]}
    for name, agent in {"untrained": untrained(model, seed), "shuffled": shuffled(model, seed)}.items():
        for ending, how in {"": {}, "_top": size}.items():  # the same search; and the best mask of the circuit's size
            part = folder.part(
                name + ending, lambda agent=agent, how=how: search(agent, alpha, 0, teacher=model, **how)
            )
            assert isinstance(part, MaskResult)
            others[name + (", best of this size" if ending else "")] = (agent, part)
    judge = {"episodes": episodes, "steps": steps, "seed": seed + REPORT}
    folder.part(
        "circuit",
        lambda: judged(model, batch, counts, found, alpha, masks, others, judge, singles, seed, minutes, provenance),
    )
    if not (folder.path / "circuit.safetensors").exists():
        masks[0].mask.save(folder.path / "circuit.safetensors")
    headings = {"circuit": "A circuit, and what as many other weights do"}
    headings |= {f"search_{a:g}": f"The search at alpha {a:g}" for a in alphas}
    headings |= {name: f"The same search on {name} weights" for name in ("untrained", "shuffled")}
    folder.report(f"The circuit of {model.spec.name}", INTRO, headings, NOTES)
    return folder.parts


def chosen(found: Mapping[float, MaskResult]) -> float:
    """The price whose mask is smallest among those near the full agent's score; where none is, that of the best."""
    good = [a for a, r in found.items() if r.scores["circuit"]["score"] >= r.scores["full"]["score"] - NEAR]
    if good:
        return min(good, key=lambda a: found[a].kept)
    log.warning("no mask comes within %g of the full agent: the best is taken; try smaller alphas", NEAR)
    return max(found, key=lambda a: found[a].scores["circuit"]["score"])


@torch.no_grad()
def shuffled(model: Any, seed: int) -> Model:
    """The trained weights, the entries of each parameter in random order."""
    fresh = untrained(model, seed)
    generator = torch.Generator().manual_seed(seed + 98)
    own = dict(model.agent.named_parameters())
    for name, parameter in fresh.agent.named_parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(own[name].detach().flatten()[order].view_as(parameter))
    return fresh


def judged(
    model: Any, batch: Mapping[str, Tensor], counts: Tensor, found: Mapping[float, MaskResult], alpha: float,
    masks: Sequence[MaskResult], others: Mapping[str, tuple[Model, MaskResult]], judge: Mapping[str, Any], singles: int,
    seed: int, minutes: float, provenance: Provenance,
) -> CircuitResult:  # fmt: skip
    """All rows on fresh episodes."""
    best = masks[0]
    hard = {name: torch.from_numpy(mask.copy()) for name, mask in best.masks.items()}

    def row(who: Any, kept: Masks | None, **world: Any) -> dict[str, float]:
        told = {"kept": float(sum(int(m.sum()) for m in (kept or {}).values()))}
        if kept is None:
            told["kept"] = float(best.sizes["maskable"])
            return told | play_score(who, **judge, **world)
        with who.edited([WeightMask(kept)], guard=False):
            return told | play_score(who, **judge, **world)

    bed = Bed.of(model.agent, batch, counts)
    kinds = controls(bed, hard, seed)
    names = ["circuit", "complement", "magnitude", "attribution", *(k for k in kinds if k.startswith("random"))]
    rows = {"full": row(model, None), **{name: row(model, kinds[name]) for name in names}}
    for number, other in enumerate(masks[1:], 1):
        rows[f"circuit, seed {number}"] = row(model, {n: torch.from_numpy(m.copy()) for n, m in other.masks.items()})
    for name, (agent, result) in others.items():
        rows[name] = row(agent, {n: torch.from_numpy(m.copy()) for n, m in result.masks.items()})
        if "," not in name:
            rows[f"{name}, highest of this size"] = row(agent, _of_size(result, best.kept))
    return CircuitResult(
        alpha=alpha,
        episodes=int(judge["episodes"]),
        kept=best.kept,
        sizes=dict(best.sizes),
        rows=rows,
        front={f"{a:g}": (float(r.kept), r.scores["circuit"]["score"]) for a, r in found.items()},
        minimality=minimality(model, hard, rows["circuit"]["score"], judge, singles, seed),
        stability=mask_stability([m.mask for m in masks]) if len(masks) > 1 else {},
        elsewhere={
            name: (row(model, None, kwargs=kwargs)["score"], row(model, hard, kwargs=kwargs)["score"])
            for name, kwargs in other_worlds(model.spec).items()
        },
        roles=best.roles(),
        anatomy=anatomy(best.masks, int(np.prod(model.sites["memory"].shape))),
        degrees=degrees(best.masks),
        minutes=minutes,
        provenance=provenance,
    )


def _of_size(result: MaskResult, count: int) -> Masks:
    """The mask of the `count` highest logits."""
    names = list(result.logits)
    logits = [torch.from_numpy(result.logits[n].copy()).expand(result.masks[n].shape) for n in names]
    return dict(zip(names, top(logits, [1] * len(names), count), strict=True))


def minimality(
    model: Any, masks: Masks, score: float, judge: Mapping[str, Any], most: int, seed: int
) -> np.ndarray:
    """Drop of the score when one kept weight is dropped, of up to `most` drawn at random."""
    places = [(name, place) for name, mask in masks.items() for place in mask.flatten().nonzero().flatten().tolist()]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:most].tolist()
    drops = []
    for name, place in (places[i] for i in order):
        fewer = masks[name].clone()
        fewer.view(-1)[place] = False
        with model.edited([WeightMask({**masks, name: fewer})], guard=False):
            drops.append(score - play_score(model, **judge)["score"])
    return np.array(drops)


def other_worlds(spec: Any) -> dict[str, dict[str, Any]]:
    """Neighbouring sizes of a world that has one, with the same observations."""
    size = spec.kwargs.get("size")
    if size is None:
        return {}
    return {f"size {s}": {"size": s} for s in (size - 2, size + 2, size + 4) if s >= 7 and s % 2}


INTRO = """A mask keeps some weights of the agent as they are and sets the others to zero; biases and norms stay. It is
found by gradients through the recurrence: one logit per weight, whole episodes, the divergence from the full agent's
policy, and a price for each kept weight. Success is told by fresh greedy episodes with balanced cues; "lost" reached
neither end, "right of chosen" counts those that did."""
NOTES = {
    "circuit": """The complement keeps everything but the circuit; random masks keep as many weights of each parameter,
magnitude and attribution (gradient times weight) as many in all. A complement that works shows that the circuit is not
the only one. The untrained and the shuffled network were asked to imitate the trained one's policy with the same
search: what they reach was made by the search, not by learning.""",
    "untrained": "\"Full\" is the untrained network itself; the divergence is from the trained one's policy.",
    "shuffled": "\"Full\" is the shuffled network itself; the divergence is from the trained one's policy.",
}
