"""The toy of circuits spec section 12, in full: `python benchmarks/toy_circuits.py [units]`, minutes on a core.

A GRU of 64 units learns cue XOR layout; then masks by penalty, development, unit swaps and edits, as the spec lists
them. Its numbers stand beside ours: one seed each, so directions are compared, not digits.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.studies.toy import Toy, accuracy, answers, train, trials
from torchmem.studies.masked_training import train_masked
from torchmem.studies.unit_ranks import d_prime
from torchmem.surgery.mask import fit_mask
from torchmem.surgery.mask_controls import controls
from torchmem.surgery.policy_distance import Bed, substituted

LENGTH = 16
LADDER = (0, 60, *range(100, 240, 10), 300)
SPEC = {  # penalty, alpha, steps -> kept, circuit, complement, random, magnitude
    ("sum_logit", 1e-4, 900): "3.2 %   .998 .578 .502 .389", ("sum_logit", 1e-4, 1500): "2.0 %  1.000 .806 .513 .066",
    ("sum_logit", 1e-3, 900): "0 %     .491 1.000 .506 .482", ("sum_prob", 1e-4, 900): "7-8 % 1.000 .511 .510 .627",
    ("sum_prob", 1e-3, 900): "1.5 %  .98-.99 .775 .511 .563",
}  # fmt: skip


def masks(agent: Toy, data, test) -> dict:
    found = {}
    print(f"{'penalty':<10} {'alpha':>6} {'steps':>5} | kept    circuit complement random magnitude | spec")
    for (penalty, alpha, steps), spec in SPEC.items():
        start = time.monotonic()
        found[penalty, alpha, steps] = r = fit_mask(
            agent, data.batch, weights=data.weights, penalty=penalty, alpha=alpha, steps=steps, rows=64, patience=0,
            evaluate=lambda m: accuracy(m, test), chance=0.5, singles=0,
        )
        score = {name: row["score"] for name, row in r.scores.items()}
        print(
            f"{penalty:<10} {alpha:6g} {steps:5} | {r.fractions()['maskable']:6.2%} {score['circuit']:7.3f} "
            f"{score['complement']:10.3f} {r.measure('random'):6.3f} {score['magnitude']:9.3f} | {spec} "
            f"({time.monotonic() - start:.0f} s, least logit {min(x.min() for x in r.logits.values()):.1f})"
        )
    return found


def scored(agent: Toy, test, weights: dict[str, Tensor], mask: dict[str, Tensor] | None = None) -> float:
    kept = {n: torch.where(mask[n], w, 0.0) if mask and n in mask else w for n, w in weights.items()}
    with substituted(agent, kept):
        return accuracy(agent, test)


def main() -> None:
    units = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    agent = Toy(units)
    ladder = train(agent, 400, LENGTH, keep=LADDER)
    test, data = trials(1000, LENGTH, seed=5), trials(512, LENGTH, seed=7)
    print(f"{units} units, accuracy {accuracy(agent, test):.3f}")
    found = masks(agent, data, test)
    best = found["sum_prob", 1e-3, 900]
    more = {"alpha": 1e-3, "steps": 900, "rows": 64, "patience": 0, "singles": 0, "seed": 1}
    again = fit_mask(agent, data.batch, weights=data.weights, **more)
    chance = best.mask.expected_iou(again.mask)
    print(f"IoU of two seeds {best.mask.iou(again.mask):.2f} (chance {chance:.3f}); spec 0.71")
    circuit = {n: torch.from_numpy(m.copy()) for n, m in best.masks.items()}
    bed = Bed.of(agent, data.batch, data.weights)
    random = controls(bed, circuit, 0)["random 0"]
    print("training step: full / circuit's mask / random mask")
    for step, weights in ladder.items():
        cells = [scored(agent, test, weights, mask) for mask in (None, circuit, random)]
        print(f"{step:6}: " + " / ".join(f"{c:.2f}" for c in cells))
    swaps(agent, test)
    edits(agent, circuit, random, test)


@torch.no_grad()
def swaps(agent: Toy, test) -> None:
    """Units exchanged at T - 2 between trials that differ in the cue, best d' first."""
    first, signal = test.batch["is_first"], test.batch["signal"]
    h = agent.unroll({"signal": signal}, {}, first, agent.initial(len(first))).units[:, -2]
    partner = torch.arange(len(h)) ^ 1  # rows alternate cues under one layout
    order = d_prime(h, test.cue).argsort(descending=True)
    own = answers(agent, test)
    shuffled = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))
    for name, ranks in (("d'", order), ("random", shuffled)):
        cells = []
        for k in (2, 4, 8, 16, 32, len(order)):
            mixed = h.clone()
            mixed[:, ranks[:k]] = h[partner][:, ranks[:k]]
            x = torch.nn.functional.silu(agent.input(signal[:, -1]))
            out = agent.actor(torch.nn.functional.silu(agent.hidden(agent.step(x, mixed))))
            cells.append(f"k={k}: {(out.argmax(-1) != own).float().mean():.2f}")
        print(f"flip rate, {name}: " + ", ".join(cells))


def edits(agent: Toy, circuit: dict, random: dict, test) -> None:
    own = {n: p.detach() for n, p in agent.named_parameters()}
    sets = {"full": {n: torch.ones_like(m) for n, m in circuit.items()}, "circuit": circuit, "random": random}
    for edit in ("anti_match", "flip_one_cue"):
        for rate, steps in ((1e-3, 400), (1e-2, 600)):
            for name, mask in sets.items():
                part = trials(256, LENGTH, seed=9)
                flipped = torch.ones_like(part.cue, dtype=torch.bool) if edit == "anti_match" else part.cue == 0
                wanted = torch.where(flipped[:, None], 1 - part.batch["action"], part.batch["action"])
                bed = Bed.of(agent, {**part.batch, "action": wanted}, part.weights)
                trained = train_masked(
                    own, mask, lambda w, bed=bed: bed.surprise(bed.policy(w)), rate=rate, steps=steps,
                    stop=lambda w, edit=edit: goal(agent, test, w, edit) >= 0.98, check=10,
                )
                print(
                    f"{edit}, {name}, rate {rate:g}: {goal(agent, test, trained.delta.apply(own), edit):.3f} after "
                    f"{trained.steps} steps, |dW| {trained.delta.norm():.1f}"
                )


def goal(agent: Toy, test, weights, edit: str) -> float:
    right = test.batch["action"][:, -1]
    flipped = torch.ones_like(right, dtype=torch.bool) if edit == "anti_match" else test.cue == 0
    with substituted(agent, dict(weights)):
        return float((answers(agent, test) == torch.where(flipped, 1 - right, right)).float().mean())


if __name__ == "__main__":
    main()
