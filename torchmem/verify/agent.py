"""Self-tests of an agent: one policy however it is run, nothing through a reset, nothing but what it may see."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.verify.acting import (
    Acted,
    Batch,
    Tensors,
    act,
    before_reset,
    draws_its_state,
    gap,
    gaps,
    training_batch,
    unroll,
)
from torchmem.verify.report import Check, measured
from torchmem.verify.tape import HALF, RESET, STEPS, Tape

CLOSE = 1e-5  # of the largest value; float32 over some tens of steps stays ten times below
ROW = 2  # of the tape, whose episode opens at RESET
UNTOUCHED = 0  # a row without that reset: what changes before must be felt there


def agent_checks(agent: Any, tape: Tape, other: Mapping[str, Tensor]) -> list[Check]:
    """All checks of a shaken agent (`acting.shake`), in float32.

    tape: observations of its world. other: other ones of the same shapes, to exchange some with. Where rounding may
    flip a draw of the agent's state, what differs is looked at again in float64, and both numbers are told.
    """
    checks = Bench(agent, tape, other).checks()
    if draws_its_state(agent) and not all(check.ok for check in checks):
        agent.double()
        agent.dtype = torch.float64
        again = Bench(agent, tape, other).checks()
        checks = [a if a.ok else in_float64(a, b) for a, b in zip(checks, again, strict=True)]
    return checks


def in_float64(single: Check, double: Check) -> Check:
    text = f"in float64; in float32 {single.value:.2g}" + (", a draw that rounding flipped" if double.ok else "")
    return dataclasses.replace(double, detail=f"{double.detail} ({text})".strip())


class Bench:
    """One agent, its tape, and the passes that several checks share, each made once."""

    def __init__(self, agent: Any, tape: Tape, other: Mapping[str, Tensor]) -> None:
        self.agent, self.tape, self.other = agent, tape, other

    @functools.cached_property
    def acted(self) -> Acted:
        return act(self.agent, self.tape)

    @functools.cached_property
    def sequence(self) -> tuple[Tensors, Tensor]:
        return unroll(self.agent, self.tape, self.acted)

    @functools.cached_property
    def data(self) -> Batch:
        return training_batch(self.agent, self.tape)

    def checks(self) -> list[Check]:
        tape = self.tape
        shown = f"{tape.n} rows x {STEPS} steps, resets at first, middle and last ones"
        learnt = f"{tape.n} columns x {HALF} steps of training's own data path"
        table = [
            ("step = sequence", f"policy step by step against unroll: action parameters, value, memory; {shown}",
             CLOSE, self.step_against_sequence),
            ("step = cut sequence", "the same against unroll in two pieces that hand on the carry", CLOSE,
             self.step_against_pieces),
            ("step = loss path", f"memory after acting against memory after the loss; {learnt}", CLOSE,
             self.step_against_loss),
            ("act = train", f"log-probabilities and values, or latents, recorded against the loss's; {learnt}", CLOSE,
             self.act_against_train),
            ("reset: acting", "an episode after two different pasts, step by step", CLOSE, self.resets_acting),
            ("reset: sequence", "an episode after two different pasts, in one unroll", CLOSE, self.resets_sequence),
            ("reset: loss", "an episode after two different pasts, in the loss", CLOSE, self.resets_loss),
            ("nothing kept", "acting alone against acting in turns with other episodes", 0, self.nothing_kept),
            ("rows apart", "a row beside other neighbours", CLOSE, self.rows_apart),
            ("truth unreachable", "acting and training data beside two different truths", 0, self.truth_unreachable),
        ]  # fmt: skip
        with torch.no_grad():
            return [measured(*line) for line in table]

    def step_against_sequence(self) -> tuple[float, str]:
        return self._against(*self.sequence)

    def step_against_pieces(self) -> tuple[float, str]:
        return self._against(*unroll(self.agent, self.tape, self.acted, HALF))

    def _against(self, thought: Tensors, memory: Tensor) -> tuple[float, str]:
        acted = self.acted
        worst, key = gaps(thought, {k: v for k, v in acted.thought.items() if k != "memory"})
        end = gap(memory, self.agent.memory_of(acted.carry))
        if max(worst, end) <= CLOSE:
            return max(worst, end), ""
        return max(worst, end), f"{key} by {worst:.2g}{since(thought, acted, key)}, the last memory by {end:.2g}"

    def step_against_loss(self) -> tuple[float, str]:
        out = self.agent.loss(self.data.batch, self.data.noise)
        known = self.data.known
        text = "" if known.all() else f"{int(known.sum())} rows that open an episode; nothing is stored of the others"
        return gap(self.agent.memory_of(out.carry)[known], self.data.memory[known]), text

    def act_against_train(self) -> tuple[float, str]:
        """What acting wrote down against what the loss makes of the same rows before any update."""
        agent, data = self.agent, self.data
        if not data.context:  # columns with log-probabilities: with advantages of 1 the policy loss is minus the ratio
            batch = data.batch | {"advantage": torch.ones_like(data.batch["advantage"]), "target": data.batch["value"]}
            counts = batch["weight"] > 0
            losses = agent.loss(batch | {"weight": counts.to(batch["weight"].dtype)}, data.noise).losses
            ratio = float((1 + losses["policy"])[counts].abs().max())
            error = float((2 * losses["value"][counts].max()).sqrt() / batch["value"].abs().max().clamp(min=1))
            return worst_of(ratio, error), f"ratio off 1 by {ratio:.1e}, value by {error:.1e}"
        if not data.latents:
            return 0.0, "nothing is recorded that the loss computes again; see step = loss path"
        worst, key = gaps(agent.loss(data.batch, data.noise).latents, data.latents)
        return worst, f"{key}, the worst of {', '.join(data.latents)}"

    def resets_acting(self) -> tuple[float, str]:
        agent, at, free = self.agent, (ROW, slice(RESET, None)), self.tape.without_resets()
        one, two = self.acted, act(agent, self.tape.changed(ROW, slice(0, RESET), self.other))
        felt = act(agent, free), act(agent, free.changed(ROW, slice(0, RESET), self.other))
        worst, key = gaps({**two.thought, **two.actions}, {**one.thought, **one.actions}, at)
        return worst, told(worst, key, gaps(felt[1].thought, felt[0].thought, at)[0])

    def resets_sequence(self) -> tuple[float, str]:
        agent, at, free = self.agent, (ROW, slice(RESET, None)), self.tape.without_resets()
        actions = {key: value.clone() for key, value in self.acted.actions.items()}
        for value in actions.values():  # another past did other things too
            value[ROW, :RESET] = value[UNTOUCHED, :RESET]
        past = self.acted._replace(actions=actions)
        two = unroll(agent, self.tape.changed(ROW, slice(0, RESET), self.other), past)
        felt = unroll(agent, free, self.acted), unroll(agent, free.changed(ROW, slice(0, RESET), self.other), past)
        worst, key = gaps(two[0], self.sequence[0], at)
        return worst, told(worst, key, gaps(felt[1][0], felt[0][0], at)[0])

    def resets_loss(self) -> tuple[float, str]:
        """The memory that the loss ends with, and its latents, once the steps before the reset are others."""
        agent, data, step = self.agent, self.data, RESET - HALF
        changed = before_reset(agent, data, self.other, step)
        one, two = agent.loss(data.batch, data.noise), agent.loss(changed, data.noise)
        memory = agent.memory_of(one.carry), agent.memory_of(two.carry)
        worst, key = gaps(two.latents, one.latents, (ROW, slice(step, None)))
        worst = worst_of(worst, gap(memory[1][ROW], memory[0][ROW]))
        return worst, told(worst, key or "the memory", gap(memory[1][UNTOUCHED], memory[0][UNTOUCHED]))

    def nothing_kept(self) -> tuple[float, str]:
        elsewhere = self.tape.changed(slice(None), slice(None), self.other)
        worst, key = same_acts(self.acted, act(self.agent, self.tape, between=elsewhere))
        return worst, f"{key} differs: the agent remembers outside its carry" if worst else ""

    def rows_apart(self) -> tuple[float, str]:
        beside = act(self.agent, self.tape.changed(slice(1, None), slice(None), self.other))
        worst, key = same_acts(self.acted, beside, 0)
        return worst, f"{key} differs" if worst > CLOSE else ""

    def truth_unreachable(self) -> tuple[float, str]:
        """Put the truth beside the observations, twice with other values: whoever looks at it gives itself away."""
        agent, data, generator = self.agent, self.data, torch.Generator().manual_seed(2)
        names = list(agent.spec.truth) or ["truth"]
        truths = [{k: torch.randn(self.tape.n, STEPS, generator=generator) for k in names} for _ in range(2)]
        worst, key = same_acts(*(act(agent, self.tape, extra=truth) for truth in truths))
        length = data.batch["is_first"].shape[1]
        besides = [{key: value[:, :length].to(agent.device) for key, value in truth.items()} for truth in truths]
        loss = gap(*(agent.loss({**beside, **data.batch}, data.noise).total for beside in besides))
        if worst_of(worst, loss) == 0:
            return 0.0, f"keys {', '.join(names)}"
        return worst_of(worst, loss), f"{key} by {worst:.2g}, the loss by {loss:.2g}: the agent reads truth"


def same_acts(one: Acted, two: Acted, at: Any = slice(None)) -> tuple[float, str]:
    return gaps({**two.thought, **two.actions}, {**one.thought, **one.actions}, at)


def told(worst: float, key: str, control: float) -> str:
    """Beside a reset the control: how much the same past matters where no reset lies in between."""
    return f"without the reset {control:.2g}" + (f"; with it {key} differs" if worst > CLOSE else "")


def worst_of(*values: float) -> float:
    return max(value if value == value else math.inf for value in values)


def since(thought: Mapping[str, Tensor], acted: Acted, key: str) -> str:
    """Where a difference begins: the way to its cause."""
    if key not in thought or key not in acted.thought or thought[key].shape != acted.thought[key].shape:
        return ""
    apart = (thought[key] - acted.thought[key]).abs().flatten(1 if thought[key].dim() < 3 else 2)
    apart = apart if thought[key].dim() < 3 else apart.amax(-1)
    where = (apart > CLOSE * float(acted.thought[key].abs().max().clamp(min=1))).nonzero()
    return f" from step {int(where[:, 1].min())} on" if len(where) else ""
