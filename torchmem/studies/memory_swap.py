"""swap_memory: exchange the memory of two worlds that differ in the cue alone, and see whether the choice turns around.

Pairs: the same episode with either cue; observations differ only where a cue is in sight. Both are played; then each
is played again, and in the middle of its delay, between the last sight of the cue and the first sight of a choice, its
memory is replaced by the donor's at the middle of the donor's delay. The donor's pose may differ; the control donors,
taken from an episode with the *same* cue, show what that alone does (circuits spec, section 7).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchmem.envs.tensor_world import TensorWorld
from torchmem.intervals import wilson
from torchmem.result import Provenance, Result
from torchmem.surgery.items import TraceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RUNNING, SUCCESS, WRONG = range(3)  # truth "outcome" of the MiniGrid memory worlds


@dataclasses.dataclass(frozen=True)
class SwapResult(Result):
    """Flips of the choice, of episodes that were chosen right without a swap and had a delay.

    flips: condition -> (flipped, all). A flip: the other end was chosen. lost: neither end was reached any more.
    conditions: "other cue" exchanges everything, "top units" those that differ most between the cues; controls are a
    donor with the "same cue", as many "random units", and wrong times, in episodes that do not open with the cue in
    sight: "donor too early" has not seen it yet (step 0), so it knows nothing; "swap too early" puts the right donor in
    at step 0 (an agent that looks all the same forgets the false memory, one that trusts it does not look).
    success: of the untouched plays, (won, all). delay: mean steps between cue and choice. units: (swapped, all).
    """

    site: str
    success: tuple[int, int]
    delay: float
    units: tuple[int, int]
    flips: dict[str, tuple[int, int]]
    lost: dict[str, int]

    def rate(self, condition: str) -> tuple[float, float, float]:
        """Flip rate and its 95 % interval (Wilson)."""
        return wilson(*self.flips[condition])

    def summary(self) -> str:
        rate, low, high = wilson(*self.success)
        lines = [
            f"untouched: success {rate:.3f} [{low:.3f}, {high:.3f}] over {self.success[1]} episodes, "
            f"{self.delay:.1f} steps between cue and choice; top and random units: {self.units[0]} of {self.units[1]}"
        ]
        for name in self.flips:
            rate, low, high = self.rate(name)
            lines.append(
                f"{self.site} swapped, {name}: choice flips {rate:.3f} [{low:.3f}, {high:.3f}] "
                f"of {self.flips[name][1]}, {self.lost[name]} lost their way"
            )
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        for y, name in enumerate(self.flips):
            rate, low, high = self.rate(name)
            ax.barh(y, rate, color="tab:red" if name in ("other cue", "top units") else "tab:gray")
            ax.errorbar(rate, y, xerr=[[rate - low], [high - rate]], color="black", capsize=4)
        ax.set_yticks(range(len(self.flips)), [f"{name} ({n})" for name, (_, n) in self.flips.items()])
        ax.invert_yaxis()
        ax.set(xlim=(0, 1.02), xlabel="choice flips", title=f"{self.site} swapped during the delay (grey: controls)")
        return ax


def swap_memory(
    model: Any,
    *,
    site: str = "memory",
    pairs: int = 200,
    units: int | None = None,
    steps: int = 60,
    seed: int = 0,
    greedy: bool = True,
) -> SwapResult:
    """See the module. For agents of a batched cue world (`TensorWorld`), such as minigrid_memory.

    pairs: of episodes. units: how many of them "top units" and "random units" swap; default, a tenth. steps: of each
    play; an episode that has not chosen by then is lost. greedy: the likeliest action, else sampled from `seed`.
    Raises TraceError where the world has no cue, or no untouched play has a delay.
    """
    spec = model.spec
    if not {"cue_type", "outcome", "cue_visible", "choice_visible"} <= set(spec.truth):
        raise TraceError(f"{spec.name} has no cue and choice to swap between: its truth is {sorted(spec.truth)}")
    plays = _Plays(model, site, pairs, steps, seed, greedy)
    h, outcome, first_cue, last_cue, first_choice = plays.run()
    middle = (last_cue + first_choice + 1) // 2
    rows = torch.arange(2 * pairs)
    partner = rows.roll(pairs)  # row i and row i + pairs are one episode with either cue
    useful = (outcome == SUCCESS) & (last_cue >= 0) & (last_cue < middle) & (middle < first_choice)
    useful &= useful[partner]
    if not useful.any():
        raise TraceError(
            f"none of {2 * pairs} untouched episodes was chosen right with a delay between cue and choice: train the "
            f"agent first, or choose a view that does not show both"
        )
    same = rows.clone()  # donors with the same cue: another episode of that half
    for own in (rows[useful & (rows < pairs)], rows[useful & (rows >= pairs)]):
        same[own] = own.roll(1)
    at_middle = h[rows, middle.clamp(0, h.shape[1] - 1)].flatten(1)  # (rows, N)
    top, scattered = _chosen_units(at_middle, useful, pairs, units, seed)
    everything = torch.ones_like(top)
    unseen = useful & (first_cue > 0)  # of these, step 0 is before the cue
    conditions = {
        "other cue": (at_middle[partner], everything, middle, useful),
        "same cue": (at_middle[same], everything, middle, useful),
        "top units": (at_middle[partner], top, middle, useful),
        "random units": (at_middle[partner], scattered, middle, useful),
        "donor too early": (h[partner, 0].flatten(1), everything, middle, unseen),
        "swap too early": (at_middle[partner], everything, torch.zeros_like(middle), unseen),
    }
    flips, lost = {}, {}
    for name, (donor, mask, when, counted) in conditions.items():
        if not counted.any():
            continue
        ended = plays.run(donor, mask, when)[1][counted]
        flips[name] = (int((ended == WRONG).sum()), len(ended))
        lost[name] = int(((ended != WRONG) & (ended != SUCCESS)).sum())
    return SwapResult(
        site=site,
        success=(int((outcome == SUCCESS).sum()), len(outcome)),
        delay=float((first_choice - last_cue)[useful].float().mean()),
        units=(int(top.sum()), len(top)),
        flips=flips,
        lost=lost,
        provenance=Provenance.here(
            seeds={"worlds": seed}, edits=tuple(e.describe() for e in model.edits), caveats=model.caveats
        ),
    )


def _chosen_units(
    at_middle: Tensor, useful: Tensor, pairs: int, count: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Masks (N,): the units that differ most between cues, in deviations, and as many others drawn at random."""
    halves = at_middle[:pairs][useful[:pairs]], at_middle[pairs:][useful[pairs:]]
    spread = torch.sqrt(sum(half.var(0, unbiased=False) for half in halves) + 1e-12)  # pyright: ignore
    score = (halves[0].mean(0) - halves[1].mean(0)).abs() / spread
    count = max(1, len(score) // 10) if count is None else count
    order = score.argsort(descending=True)
    others = order[count:][torch.randperm(len(score) - count, generator=torch.Generator().manual_seed(seed))[:count]]
    masks = torch.zeros(2, len(score), dtype=torch.bool)
    masks[0, order[:count]] = True
    masks[1, others] = True
    return masks[0], masks[1]


class _Pairs:
    """Two batched worlds of one seed that differ in the cue, as one: rows of the first, then of the second."""

    def __init__(self, model: Any, pairs: int, seed: int) -> None:
        spec, self.n = model.spec, 2 * pairs
        self.worlds = [TensorWorld(spec.name, spec.kwargs, pairs, split="record", seed=seed) for _ in range(2)]

    def step(self, actions: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if actions is None:
            parts = [world.reset({"cue": cue}) for world, cue in zip(self.worlds, ("key", "ball"), strict=True)]
        else:
            halves = [{k: torch.as_tensor(v).chunk(2)[i] for k, v in actions.items()} for i in range(2)]
            parts = [world.step(half) for world, half in zip(self.worlds, halves, strict=True)]
        (data, truth), (other, other_truth) = parts
        return {k: torch.cat([data[k], other[k]]) for k in data}, {
            k: torch.cat([truth[k], other_truth[k]]) for k in truth
        }


@dataclasses.dataclass
class _Plays:
    model: Any
    site: str
    pairs: int
    steps: int
    seed: int
    greedy: bool

    def run(
        self, value: Tensor | None = None, mask: Tensor | None = None, when: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Play all pairs, with `value` (rows, N) put in at step `when` (rows,) of each, at the units of `mask` (N,).

        Returns the site (rows, T, *shape), and of the first episode: outcome, first and last step with the cue in
        sight, first step with a choice in sight after it, each (rows,).
        """
        handle = self.model.site(self.site)
        noise = "mode" if self.greedy else None
        worlds = _Pairs(self.model, self.pairs, self.seed)
        with self.model.trace.play(self.steps, env=worlds, seed=self.seed, noise=noise, raw=False) as tr:
            if value is not None and mask is not None and when is not None:
                moment, donor, units = when, value.view(-1, *handle.shape), mask.view(handle.shape)
                handle.write(
                    _exchange(donor, units), (slice(None), slice(None)), when=lambda info: info.step == moment[:, None]
                )
            h = handle.save()
        played = tr.out
        last = _first(played.is_last)  # steps when the first episode does not end
        within = torch.arange(h.shape[1]) <= last[:, None]
        ends = played.truth["outcome"].gather(1, last.clamp(max=h.shape[1] - 1)[:, None]).squeeze(1)
        cue = played.truth["cue_visible"].bool() & within
        last_cue = torch.where(cue, torch.arange(h.shape[1]), -1).amax(1)
        choice = played.truth["choice_visible"].bool() & within & (torch.arange(h.shape[1]) > last_cue[:, None])
        return h, ends, _first(cue), last_cue, _first(choice)


def _exchange(donor: Tensor, units: Tensor) -> Any:
    return lambda there: torch.where(units, donor.unsqueeze(1), there)


def _first(flags: Tensor) -> Tensor:
    """(rows,): the first step with the flag; T where there is none."""
    steps = torch.where(flags, torch.arange(flags.shape[1]), flags.shape[1])
    return steps.amin(1)
