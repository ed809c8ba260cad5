"""study_development: when does a circuit form? The late mask on earlier weights, and earlier masks on later ones.

Training keeps agents on the way (`save.ladder`, `save.agents_every`). If the weights that the late mask keeps hold the
skill before the whole agent shows it, masking an undertrained checkpoint makes it better, while random masks, and the
same mask on weights that it does not belong to, do not (circuits spec section 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.checkpoint import load
from torchmem.result import Provenance, Result
from torchmem.studies.circuits import shuffled
from torchmem.studies.development_result import DevelopmentResult
from torchmem.studies.folder import StudyFolder
from torchmem.studies.mask_play import full_play, play_score
from torchmem.surgery.mask import fit_mask
from torchmem.surgery.mask_controls import DRAWS, Masks
from torchmem.surgery.mask_result import MaskResult
from torchmem.surgery.model import Model, untrained
from torchmem.surgery.weight_edit import weights_hash
from torchmem.surgery.weight_mask import WeightMask

SEED = 3_000  # of the episodes that judge, beside the study's


def find_ladder(run: str | Path) -> dict[int, Path]:
    """Agent steps -> agent folder, in order: `<run>/ladder/<steps>`, or `<run>/<steps>`. Raises ValueError."""
    run = Path(run)
    home = run / "ladder" if (run / "ladder").is_dir() else run
    found = {int(p.name): p for p in home.iterdir() if p.name.isdigit()} if home.is_dir() else {}
    if len(found) < 3:
        raise ValueError(
            f"{home} holds {len(found)} agents of a ladder: train with save.ladder=true or save.agents_every=N"
        )
    return dict(sorted(found.items()))


def study_development(
    model: Any,
    out: str | Path,
    circuit: WeightMask,
    ladder: Mapping[int, str | Path],
    *,
    others: Mapping[str, str | Path] | None = None,
    episodes: int = 500,
    steps: int = 80,
    fits: int = 4,
    fit: Mapping[str, Any] | None = None,
    rows: int = 256,
    seed: int = 0,
) -> dict[str, Result]:
    """Judge the mask of `model` on every agent of the ladder, written to the folder `out`.

    circuit: as `study_circuits` found it on `model`. ladder: agent steps -> agent, see `find_ladder`. others: name ->
    trained agents of other seeds, on whose weights the mask is tried too. fits: rungs, evenly spread, that get masks of
    their own. fit: settings of these searches (`MaskFit`). Raises ValueError where the circuit does not fit.
    """
    circuit.check(model.agent)
    settings = {
        "episodes": episodes, "steps": steps, "fits": fits, "fit": dict(fit or {}), "rows": rows, "seed": seed,
        "circuit": circuit.digest, "weights": weights_hash(model.agent), "ladder": [int(k) for k in ladder],
        "others": sorted(others or {}), "world": [model.spec.name, dict(model.spec.kwargs)],
    }  # fmt: skip
    folder = StudyFolder(out, "development", settings)
    judge = {"episodes": episodes, "steps": steps, "seed": seed + SEED}
    agents = {int(step): Model(load(path)) for step, path in ladder.items()}
    spread = sorted({round(i) for i in np.linspace(0, len(agents) - 1, fits)}) if fits else []
    masks = {}
    for step in (list(agents)[i] for i in spread):
        how = (rows, steps, judge, fit, seed)
        part = folder.part(f"mask_{step}", lambda step=step, how=how: _searched(agents[step], model, *how))
        assert isinstance(part, MaskResult)
        masks[step] = part
    made_by = folder.provenance(model, {"study": seed})
    folder.part("development", lambda: _developed(model, circuit, agents, masks, others or {}, judge, seed, made_by))
    heading = {"development": "The late mask on earlier weights"}
    folder.report(f"How the circuit of {model.spec.name} came about", INTRO, heading, {})
    return folder.parts


def _searched(
    agent: Any, teacher: Any, rows: int, steps: int, judge: Mapping[str, Any], fit: Mapping[str, Any] | None, seed: int
) -> MaskResult:
    """A mask of these weights that imitates their own policy, on episodes of the late agent."""
    batch, counts = full_play(teacher, rows, steps=steps, seed=seed)
    settings = {"alpha": 1e-3, "steps": 2000, "rate": 2e-2, "singles": 0, "seed": seed, **(fit or {})}
    return fit_mask(agent, batch, weights=counts, evaluate=lambda m: play_score(m, **judge), chance=0.5, **settings)


def _developed(
    model: Any, circuit: WeightMask, agents: Mapping[int, Model], masks: Mapping[int, MaskResult],
    others: Mapping[str, str | Path], judge: Mapping[str, Any], seed: int, provenance: Provenance,
) -> DevelopmentResult:  # fmt: skip
    late: Masks = dict(circuit.masks)
    tried = {"unmasked": None, "circuit": circuit, **{f"random {i}": m for i, m in enumerate(_random(late, seed))}}
    told = {name: [_score(agent, mask, judge) for agent in agents.values()] for name, mask in tried.items()}
    n = judge["episodes"]
    lottery = {"untrained weights": untrained(model, seed), "shuffled weights": shuffled(model, seed)}
    lottery |= {f"the agent {name}": Model(load(path)) for name, path in others.items()}
    own = {step: WeightMask({k: torch.from_numpy(m.copy()) for k, m in r.masks.items()}) for step, r in masks.items()}
    matrix = [[_score(agents[j], own[i], judge)["score"] for j in own] for i in own]
    return DevelopmentResult(
        episodes=n,
        kept=circuit.total()[0],
        steps=np.array(list(agents)),
        hits={name: np.array([round(row["score"] * n) for row in rows]) for name, rows in told.items()},
        lost={name: np.array([round(row["lost"] * n) for row in rows]) for name, rows in told.items()},
        dynamics=weight_dynamics([dict(a.agent.named_parameters()) for a in agents.values()],
                                 dict(model.agent.named_parameters()), late),
        lottery={name: _score(agent, circuit, judge)["score"] for name, agent in lottery.items()},
        fitted={
            str(step): {
                "kept": float(r.kept), "score": r.scores["circuit"]["score"], "iou": own[step].iou(circuit),
                "chance": own[step].expected_iou(circuit),
                "contained": (own[step] & circuit).total()[0] / max(1, circuit.total()[0]),
            }
            for step, r in masks.items()
        },
        matrix=np.array(matrix),
        provenance=provenance,
    )  # fmt: skip


def _score(agent: Any, mask: WeightMask | None, judge: Mapping[str, Any]) -> dict[str, float]:
    if mask is None:
        return play_score(agent, **judge)
    with agent.edited([mask], guard=False):
        return play_score(agent, **judge)


def _random(masks: Masks, seed: int) -> list[WeightMask]:
    """Masks as dense in each parameter."""
    generator = torch.Generator().manual_seed(seed)
    return [
        WeightMask({
            n: m.flatten()[torch.randperm(m.numel(), generator=generator).to(m.device)].view_as(m)
            for n, m in masks.items()
        })
        for _ in range(DRAWS)
    ]  # fmt: skip


def weight_dynamics(
    ladder: Sequence[Mapping[str, Tensor]], final: Mapping[str, Tensor], masks: Masks
) -> dict[str, np.ndarray]:
    """Per rung, inside and outside the mask: root mean square of the weights, their cosine to the final ones and share
    with another sign than these; and the share of the squared distance to the first rung that lies inside."""
    found: dict[str, list[float]] = {}

    def flat(weights: Mapping[str, Tensor], inside: bool) -> Tensor:
        return torch.cat([weights[n].detach()[m if inside else ~m] for n, m in masks.items()]).double()

    for weights in ladder:
        for name, inside in (("inside", True), ("outside", False)):
            now, then = flat(weights, inside), flat(final, inside)
            size = max(1, now.numel())
            found.setdefault(f"rms {name}", []).append(float((now**2).sum() / size) ** 0.5)
            norms = (now.norm() * then.norm()).clamp(min=1e-12)
            found.setdefault(f"cosine to final {name}", []).append(float(now @ then / norms))
            found.setdefault(f"other sign {name}", []).append(float(((now * then) < 0).double().sum() / size))
        moved = [float(((flat(weights, i) - flat(ladder[0], i)) ** 2).sum()) for i in (True, False)]
        found.setdefault("share of the update inside", []).append(moved[0] / max(sum(moved), 1e-12))
    return {name: np.array(values) for name, values in found.items()}


INTRO = """The mask was found on the last weights. Here it lies on the weights of earlier checkpoints: their own values
where it keeps, zero elsewhere. A gain over the whole checkpoint means that the kept weights held the skill before the
whole agent showed it. Random masks keep as many weights of each parameter; the lottery rows put the mask on weights
that it does not belong to. Masks of single rungs imitate their own policy."""
