"""Four numbers that are not the same, and the credit that turns one into another."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from torchmem.training.clock import Clock, Eta, Every, Ratio, duration


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_four_numbers_are_kept_apart():
    clock = Clock(action_repeat=4)
    for _ in range(10):
        clock.collected(np.int64(16), episodes=np.int64(1))
    for _ in range(3):
        clock.updated(replayed_steps=64)
    row = clock.row()
    assert (row["agent_steps"], row["env_steps"], row["updates"], row["episodes"]) == (160, 640, 3, 10)
    assert row["replay_ratio"] == pytest.approx(3 * 64 / 160)
    json.dumps(clock.state_dict())


def test_wall_time_adds_up_over_sittings_and_leaves_out_the_pause():
    time = Time()
    clock = Clock(timer=time)
    time.now += 10
    clock.collected(5)
    state = clock.state_dict()
    time.now += 1000
    resumed = Clock(timer=time)
    time.now += 3  # loading the snapshot is no running time of the run
    resumed.load_state_dict(state)
    time.now += 7
    assert resumed.wall_s == pytest.approx(17) and resumed.agent_steps == 5
    with pytest.raises(ValueError, match="action repeat"):
        Clock(action_repeat=2).load_state_dict(state)


def test_the_first_eligible_step_trains_once_and_starts_the_count():
    ratio = Ratio(32, batch=16, length=64)  # one update per 32 agent steps
    assert ratio.due(5000) == 1, "what was collected before does not count"
    assert [ratio.due(5000 + n) for n in range(16, 129, 16)] == [0, 1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("asked", [0.3, 1, 32, 100.1, 4096])
def test_no_credit_is_lost_however_the_steps_arrive(asked):
    rng = np.random.default_rng(0)
    ratio, step, updates = Ratio(asked, batch=8, length=32), 1000, 0
    updates += ratio.due(step)
    while step < 50_000:
        step += int(rng.integers(1, 40))
        updates += ratio.due(step)
    assert updates == 1 + math.floor((step - 1000) * asked / 256)


def test_the_credit_survives_a_resume_to_the_fraction():
    one, two = Ratio(7, 3, 11), Ratio(7, 3, 11)
    granted = [one.due(s) for s in range(0, 500, 4)]
    again = [two.due(s) for s in range(0, 200, 4)]
    saved = json.loads(json.dumps(two.state_dict()))
    three = Ratio(7, 3, 11)
    three.load_state_dict(saved, agent_steps=196)
    assert again + [three.due(s) for s in range(200, 500, 4)] == granted


def test_another_ratio_on_resume_starts_no_flood_of_updates():
    slow = Ratio(1, 1, 1000)
    slow.due(0)
    slow.due(100_000)
    fast = Ratio(1000, 1, 1000)
    fast.load_state_dict(slow.state_dict(), agent_steps=100_000)
    assert fast.due(100_004) == 4


def test_ratio_zero_never_trains_and_nonsense_is_refused():
    assert Ratio(0, 16, 64).due(10**9) == 0
    with pytest.raises(ValueError, match="ratio"):
        Ratio(-1, 16, 64)


def test_every_n_steps_fires_at_multiples_also_when_steps_jump():
    every = Every(steps=100)
    fired = [s for s in range(0, 1000, 16) if every(s)]
    assert fired == [112, 208, 304, 400, 512, 608, 704, 800, 912]
    resumed = Every(steps=100)
    resumed.load_state_dict(every.state_dict())
    assert not resumed(996) and resumed(1000)


def test_every_few_seconds_fires_once_per_period():
    time = Time()
    every = Every(seconds=30, timer=time)
    assert not every()
    time.now += 31
    assert every() and not every()
    assert not any(Every()(s) for s in range(1000)), "0 or None means never"


def test_eta_follows_the_present_pace():
    time = Time()
    eta = Eta(total=1000, window_s=10, timer=time)
    assert eta.left_s == math.inf and str(eta) == "unknown"
    for done in range(5):  # slow at first, while things compile
        eta.update(done)
        time.now += 10
    for done in range(5, 106, 5):
        eta.update(done)
        time.now += 1
    assert eta.per_s == pytest.approx(5)
    assert eta.left_s == pytest.approx((1000 - 105) / 5)


def test_durations_are_for_people():
    assert [duration(s) for s in (41.6, 185, 26000, 185000)] == ["42 s", "3 min 05 s", "7 h 13 min", "2 d 03 h"]
