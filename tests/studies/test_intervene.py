"""The planted agent edited (T12): a swap turns its behaviour round, simulated and real; random directions do not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.studies import planted
from tests.studies.test_dynamics import find, play_and_record, sides, truth
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.rollout import rollout
from torchmem.provenance import Provenance
from torchmem.result import load_result
from torchmem.studies.direction_edits import Changes, in_simulator, make_edits, random_rows, read_changes
from torchmem.studies.intervene import compare_plays, outcomes_of, real, simulated
from torchmem.studies.intervene_result import InterveneResult
from torchmem.surgery.model import Model

SWAP = Changes(swap=((0, 1), (1, 0)))
STEPS = 10


class OneSided(planted.World):
    """Cue A and cue B in turn, never both, from the second step on: the movement of the first has no step before it."""

    def step(self, actions):
        data, told = super().step(actions)
        if self.time <= planted.CUE_STEPS:
            data["seen"][:, :2] -= self.cues
        if 2 <= self.time <= planted.CUE_STEPS + 1:
            data["seen"][:, :2] += np.array([[1, 0], [0, 1]])[np.arange(self.n) % 2]
        return data, told


def side(play):
    """Where the agent pushes, counted towards the side of its cue."""
    push = (play["push"][..., 0] * play["keep"]).sum(1)
    return push * np.where(np.arange(len(push)) % 2 == 0, 1, -1)


def measured(changes=SWAP, directions=None, **how) -> InterveneResult:
    loop = AgentLoop(planted.agent())
    start = planted.starts(16)
    cold = start._replace(agent=start.agent._replace(hidden=start.agent.hidden * 0))

    class Cue(planted.Simulator):
        """Shows the cues of the first steps too, so that memory moves under the edit."""

        def look(self, carry):
            seen = super().look(carry)
            side = (torch.arange(len(carry.deter)) % 2 == 0).float()
            on = float(self.time < planted.CUE_STEPS)
            self.time += 1
            cues = torch.stack([side, 1 - side], -1) * on
            shown = torch.nn.functional.pad(cues, (0, planted.INPUTS - 2))
            return seen._replace(obs={"seen": seen.obs["seen"] + shown})

    world = Cue()
    play_simulated = simulated(world, loop, cold, STEPS)

    def play(edits):
        world.time = 0
        return play_simulated(edits)

    players = {"simulator": play, "world": real(Model(planted.agent()), STEPS, 16, 0, lambda: OneSided(16))}
    return compare_plays(
        players, directions or truth(), changes, {**outcomes_of(loop.spaces), "side": side},
        **{"doses": (0.25, 0.5, 1.0), "controls": 20, "predicted": {"side": "-"}, "seed": 0, "simulator": "planted",
           "provenance": Provenance(torchmem="0"), **how},
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> InterveneResult:
    return measured()


def test_a_swap_turns_behaviour_round_in_both_places_and_random_directions_do_not(found, tmp_path):
    at = found.outcomes.index("side")
    for place in ("simulator", "world"):
        assert found.before[place][at] > 0.5, "untouched it goes where its cue says"
        after = found.before[place][at] + found.effect[place][-1, at]
        assert after < -0.5 * found.before[place][at], "swapped it goes to the other side"
        assert found.came(place, "side") and found.high[place][-1, at] < 0
        assert found.flips[place][-1] >= 0.9
        assert found.flips_control[place].mean() <= 0.2, found.flips_control[place]
        assert found.p[place][at] <= 1 / 21 + 1e-9, "no random draw does as much"
        dose = found.effect[place][:, at]
        assert dose[0] > dose[1] > dose[2], "more of it does more"
    assert load_result(found.save(tmp_path / "intervene")) == found
    assert "came true" in found.summary()


def test_directions_found_in_a_recording_do_the_same():
    directions = find(play_and_record(), draws=0)
    (a, b), _ = sides(directions)
    found = measured(Changes(swap=((int(a), int(b)), (int(b), int(a)))), directions, doses=(1.0,))
    at = found.outcomes.index("side")
    for place in ("simulator", "world"):
        assert found.came(place, "side") and found.flips[place][-1] >= 0.9
        assert found.effect[place][-1, at] < -1.5 * found.before[place][at]
        assert np.median(found.flips_control[place]) <= 0.1


def test_half_a_swap_makes_the_agent_indifferent_and_dropping_both_too():
    at = 3
    for how in ({"doses": (0.5,)}, {"changes": Changes(drop=(0, 1)), "doses": (1.0,)}):
        result = measured(**{"controls": 0, **how})
        assert result.outcomes[at] == "side"
        for place in ("simulator", "world"):
            left = result.before[place][at] + result.effect[place][-1, at]
            assert abs(left) < 0.25 * result.before[place][at], (place, how)
            assert np.isnan(result.p[place]).all()


def test_a_clamp_holds_a_direction_where_it_is_told():
    loop, known = AgentLoop(planted.agent()), truth()
    changes = read_changes([], [], ["1=2.5"])
    play = rollout(
        planted.Simulator(), loop, planted.starts(4), 5, edit=in_simulator(make_edits(known, changes), loop.agent),
        early=True,
    )  # fmt: skip
    y = known.scores(play.memory.numpy())
    np.testing.assert_allclose(y[..., 1], 2.5, rtol=1e-4)
    plain = known.scores(rollout(planted.Simulator(), loop, planted.starts(4), 5).memory.numpy())
    np.testing.assert_allclose(y[..., 0], plain[..., 0], rtol=1e-3, atol=1e-3)


def test_a_clamp_holds_what_skew_directions_read():
    """Directions that overlap, as those of ICA do: y is held where it is told, and that of the other one is let be."""
    loop, known = AgentLoop(planted.agent()), truth()
    mix = np.array([[1.0, 0.0], [0.8, 0.6]])
    decode = np.concatenate([mix @ known.decode[:2], known.decode[2:]])
    encode = np.concatenate([np.linalg.inv(mix).T @ known.encode[:2], known.encode[2:]])
    skew = dataclasses.replace(known, decode=decode, encode=encode)
    np.testing.assert_allclose(encode @ decode.T, np.eye(len(decode)), atol=1e-5)
    edits = make_edits(skew, read_changes([], [], ["1=2.5"]))
    edited = rollout(planted.Simulator(), loop, planted.starts(4), 1, edit=in_simulator(edits, loop.agent), early=True)
    y = skew.scores(edited.memory.numpy())
    plain = skew.scores(rollout(planted.Simulator(), loop, planted.starts(4), 1).memory.numpy())
    np.testing.assert_allclose(y[..., 1], 2.5, rtol=1e-4)
    np.testing.assert_allclose(y[..., 0], plain[..., 0], rtol=1e-3, atol=1e-3)


def test_identities_of_swaps():
    """swap(a, a) and nothing are the identity; a collapse leaves no movement; twice swapped is once undone."""
    loop, known = AgentLoop(planted.agent()), truth()

    def memory(*many: Changes, dose: float = 1.0) -> np.ndarray:
        edits = [edit for one in many for edit in make_edits(known, one, dose)]
        edit = in_simulator(edits, loop.agent) if edits else None
        return rollout(planted.Simulator(), loop, planted.starts(4), 1, edit=edit, early=True).memory[:, 0].numpy()

    plain, start = memory(), planted.starts(4).agent.hidden.numpy()
    assert np.array_equal(memory(Changes(swap=((0, 0),))), plain) and np.array_equal(memory(SWAP, dose=0.0), plain)
    np.testing.assert_allclose(memory(SWAP, SWAP), plain, rtol=1e-4, atol=1e-8)
    moved = known.scores(memory(Changes(drop=(0,)))) - known.scores(start)
    np.testing.assert_allclose(moved[:, 0], 0, atol=1e-4)
    a, b = known.scores(memory(SWAP)) - known.scores(start), known.scores(plain) - known.scores(start)
    np.testing.assert_allclose(a, b[:, ::-1], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(memory(SWAP) - start, axis=1), np.linalg.norm(plain - start, axis=1),
                               rtol=1e-4)  # fmt: skip


def test_random_directions_are_as_long_and_wrong_words_are_told():
    known = truth()
    rows = random_rows(known, SWAP, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(known.decode, axis=1))
    assert read_changes(["0<>1", "2:1"], [3], ["4=-1.5"]) == Changes(((0, 1), (1, 0), (2, 1)), (3,), ((4, -1.5),))
    for call, match in [
        (lambda: read_changes(["0-1"], [], []), "A:B"), (lambda: read_changes([], [], ["3:1"]), "K=Y"),
        (lambda: make_edits(known, Changes(swap=((0, 7),))), "direction 7"),
        (lambda: make_edits(known, Changes(swap=((0, 1),), drop=(0,))), "two changes"),
        (lambda: measured(predicted={"sid": "-"}), "predicted 'sid'"), (lambda: measured(Changes()), "nothing"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
