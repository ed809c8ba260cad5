"""What the replay stores and serves."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.training.replay_world import EPISODE, SCHEMA, fill, make, step
from torchmem.training.replay import Replay, auto_capacity, bytes_per_step, estimate


def test_a_sequence_is_consecutive_steps_of_one_env_also_after_the_ring_wrapped(tmp_path):
    replay = make(tmp_path / "r", n=3, rows=40, length=5)
    for row in range(130):
        replay.add(step(row, 3))
        if len(replay):
            batch = replay.sample(4)
            index = batch["index"]
            assert (index.diff(dim=1) == 3).all()
            assert index.min() >= max(0, row + 1 - 40) * 3 and index.max() < (row + 1) * 3
            for key, value in batch.items():  # the content is the step's own, every key, every dtype
                for b, t in ((0, 0), (1, 4), (3, 2)):
                    r, e = divmod(int(index[b, t]), 3)
                    if key not in ("index", "is_first", "is_last"):
                        assert torch.equal(value[b, t], torch.tensor(step(r, 3)[key][e].tolist()).to(value)), key


def test_shapes_and_dtypes_are_those_of_the_schema(tmp_path):
    replay = make(tmp_path / "r")
    fill(replay, 9)
    batch = replay.sample(2)
    assert batch.keys() == {*SCHEMA, "index"}
    for key, (shape, dtype) in SCHEMA.items():
        assert batch[key].shape == (2, 5, *shape) and batch[key].dtype == getattr(torch, dtype), key
    assert batch["index"].dtype == torch.int64


def test_flags_open_every_sequence_and_close_every_cut_episode(tmp_path):
    replay = make(tmp_path / "r", n=1, length=EPISODE)
    for row in range(30):  # rows 0, 4, 8, ... open episodes, and no episode says that it ends
        replay.add({**step(row, 1), "is_first": np.array([row % 4 == 0]), "is_last": np.array([False])})
    for _ in range(20):
        batch = replay.sample(3)
        first = batch["index"] % 4 == 0
        assert torch.equal(batch["is_last"][:, :-1], first[:, 1:])
        assert not batch["is_last"][:, -1].any()  # what comes after the sequence is not known to it
        first[:, 0] = True
        assert torch.equal(batch["is_first"], first)


def test_forced_flags_are_not_stored(tmp_path):
    replay = make(tmp_path / "r", n=1, rows=20, length=5, online=False)
    for row in range(20):
        replay.add({**step(row, 1), "is_first": np.array([row == 0]), "is_last": np.array([False])})
    for _ in range(30):
        batch = replay.sample(8)
        assert not batch["is_first"][:, 1:].any() and not batch["is_last"].any()


def test_online_serves_every_fresh_piece_once_and_first(tmp_path):
    n, length = 3, 5
    replay = make(tmp_path / "r", n=n, rows=200, length=length)
    fill(replay, 23)
    starts = replay.sample(20)["index"][:, 0].tolist()
    assert starts[:12] == [piece * length * n + e for piece in range(4) for e in range(n)]  # 4 whole pieces in 23 rows
    assert all(start < 19 * n for start in starts[12:])
    fill(replay, 2, start=23)
    assert replay.sample(5)["index"][:3, 0].tolist() == [20 * n, 20 * n + 1, 20 * n + 2]


def test_online_pieces_wait_for_small_batches(tmp_path):
    replay = make(tmp_path / "r", n=3, rows=200, length=5)
    served = []
    for row in range(19):
        replay.add(step(row, 3))
        if row >= 9:
            served += replay.sample(1)["index"][:, 0].tolist()
    replay.add(step(19, 3))
    assert served == [0, 1, 2, 15, 16, 17, 30, 31, 32, *served[9:]]  # two pieces waited, one joined at row 14
    assert replay.sample(3)["index"][:, 0].tolist() == [45, 46, 47]


def test_online_drops_pieces_that_the_ring_overwrote(tmp_path):
    replay = make(tmp_path / "r", n=2, rows=12, length=5)
    fill(replay, 33)  # holds rows 21..32: of the pieces at 0, 5, ... only 25 is whole
    assert replay.sample(4)["index"][:2, 0].tolist() == [50, 51]
    assert replay.sample(64)["index"].min() >= 42


def test_the_rest_is_uniform_over_all_starts(tmp_path):
    replay = make(tmp_path / "r", n=2, rows=20, length=5, online=False)
    fill(replay, 47)
    assert len(replay) == (20 - 5 + 1) * 2
    starts = collections.Counter(replay.sample(16000)["index"][:, 0].tolist())
    assert sorted(starts) == list(range(27 * 2, 43 * 2))
    counts = np.array(list(starts.values()))
    assert ((counts - 500) ** 2 / 500).sum() < 70  # chi square of 31 degrees: 70 is p = 1e-4


def test_the_seed_decides_the_draw(tmp_path):
    drawn = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        replay = make(tmp_path / name, seed=seed, online=False)
        fill(replay, 30)
        drawn.append(replay.sample(16)["index"])
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_write_back_is_read_back_and_touches_nothing_else(tmp_path):
    replay = make(tmp_path / "r", n=2, rows=10, length=3, online=False)
    fill(replay, 10)
    index = torch.tensor([[4, 6], [9, 11]])
    replay.write_back(index, {"deter": torch.full((2, 2, 6), 99.0), "stoch": torch.full((2, 2, 2, 2), 7.0)})
    batch = replay.sample(300)
    hit = torch.isin(batch["index"], index)
    assert hit.any() and (batch["deter"][hit] == 99).all() and (batch["stoch"][hit] == 7).all()
    assert torch.equal(batch["deter"][~hit][:, 0], batch["index"][~hit] / 8)
    assert torch.equal(batch["reward"], batch["index"].float())


def test_write_back_skips_steps_that_the_ring_overwrote(tmp_path):
    replay = make(tmp_path / "r", n=2, rows=10, length=3, online=False)
    fill(replay, 10)
    index = replay.sample(32)["index"]
    fill(replay, 9, start=10)  # only row 9 (ids 18, 19) is left
    replay.write_back(index, {"deter": torch.full((32, 3, 6), 99.0), "stoch": torch.zeros(32, 3, 2, 2)})
    batch = replay.sample(300)
    hit = torch.isin(batch["index"], index)
    assert (batch["deter"][hit] == 99).all() and set(batch["index"][hit].tolist()) <= {18, 19}
    assert torch.equal(batch["deter"][~hit][:, 0], batch["index"][~hit] / 8)


def test_of_a_step_written_twice_the_last_value_stays(tmp_path):
    replay = make(tmp_path / "r", n=1, rows=10, length=3, online=False)
    fill(replay, 10)
    deter = torch.arange(4.0)[:, None, None].expand(4, 1, 6)
    replay.write_back(torch.tensor([[5], [5], [6], [5]]), {"deter": deter, "stoch": torch.zeros(4, 1, 2, 2)})
    batch = replay.sample(100)
    assert (batch["deter"][batch["index"] == 5] == 3).all() and (batch["deter"][batch["index"] == 6] == 2).all()


def test_write_back_refuses_what_it_does_not_know(tmp_path):
    replay = make(tmp_path / "r")
    fill(replay, 9)
    good = {"deter": torch.zeros(1, 1, 6), "stoch": torch.zeros(1, 1, 2, 2)}
    with pytest.raises(ValueError, match="reward"):
        replay.write_back(torch.zeros(1, 1, dtype=torch.int64), {**good, "reward": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match=r"deter.*shape"):
        replay.write_back(torch.zeros(1, 1, dtype=torch.int64), {**good, "deter": torch.zeros(1, 1, 5)})
    with pytest.raises(IndexError, match="27"):
        replay.write_back(torch.full((1, 1), 27), good)


def test_mark_truncated_closes_the_newest_step_of_one_env(tmp_path):
    replay = make(tmp_path / "r", n=2, rows=10, length=3, online=False)
    replay.mark_truncated(0)  # empty: nothing to close
    for row in range(14):
        replay.add({**step(row, 2), "is_first": np.zeros(2, np.bool_), "is_last": np.zeros(2, np.bool_)})
    replay.mark_truncated(1)
    batch = replay.sample(300)
    assert torch.equal(batch["is_last"], batch["index"] == 27)
    with pytest.raises(IndexError):
        replay.mark_truncated(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("action"), "lacks.*action"),
        (lambda s: s.update(truth=np.zeros(3)), "unknown.*truth"),
        (lambda s: s.update(image=np.zeros((3, 2, 2, 1), np.uint8)), "image.*shape"),
        (lambda s: s.update(image=np.zeros((3, 2, 2, 3), np.float32)), "image.*float32"),
        (lambda s: s.update(action=np.zeros(3, np.int32)), "action.*int32"),
    ],
)
def test_a_wrong_step_is_refused_by_key_and_stores_nothing(tmp_path, change, message):
    replay = make(tmp_path / "r")
    wrong = step(0, 3)
    change(wrong)
    with pytest.raises(ValueError, match=message):
        replay.add(wrong)
    assert replay.steps == 0


def test_counting_and_readiness(tmp_path):
    replay = make(tmp_path / "r", n=3, rows=40, length=5)
    assert len(replay) == 0 and not replay.ready(1)
    with pytest.raises(RuntimeError, match="less than a sequence of 5"):
        replay.sample(1)
    fill(replay, 8)
    assert len(replay) == 12 and replay.steps == 24 and replay.ready(12) and not replay.ready(13)
    assert not replay.ready(36 * 3)
    with pytest.raises(ValueError, match=r"at most 108; set replay\.capacity to 123"):
        replay.ready(109)
    make(tmp_path / "s", n=3, rows=41).ready(109)  # the number that the message gives is enough


@pytest.mark.parametrize(
    ("schema", "latents", "message"),
    [
        ({"is_first": ((), "bool")}, (), "is_last"),
        ({**SCHEMA, "x": ((2,), "float33")}, (), "float33"),
        ({**SCHEMA, "x": ((0,), "float32")}, (), "x"),
        ({**SCHEMA, "a/b": ((), "float32")}, (), "a/b"),
        ({**SCHEMA, "index": ((), "int64")}, (), "index"),
        (SCHEMA, ("deter", "logit"), "logit"),
    ],
)
def test_an_impossible_schema_is_refused_and_leaves_no_folder(tmp_path, schema, latents, message):
    with pytest.raises(ValueError, match=message):
        Replay(schema, 1, 100, 5, tmp_path / "r", 0, latents=latents)
    assert not (tmp_path / "r").exists()


def test_a_capacity_below_one_sequence_is_refused(tmp_path):
    with pytest.raises(ValueError, match="195 or more"):
        make(tmp_path / "r", n=3, rows=64, length=65)


def test_sizes(tmp_path, monkeypatch):
    assert bytes_per_step(SCHEMA) == 12 + 4 + 3 + 8 + 24 + 8
    assert estimate(SCHEMA, 1000) == 59_000
    replay = make(tmp_path / "r", n=3, rows=100)
    blocks = sum(512 * path.stat().st_blocks for path in (tmp_path / "r" / "data").glob("*.memmap"))
    assert blocks >= estimate(SCHEMA, 300)  # reserved now, not when the rows come
    monkeypatch.setattr("torchmem.training.replay_size.free_bytes", lambda _: 59 * 2000)
    assert auto_capacity(SCHEMA, tmp_path) == 1000 and auto_capacity(SCHEMA, tmp_path, limit=10) == 10
    replay.close()


def test_the_rows_are_an_ordinary_tensordict(tmp_path):
    replay = make(tmp_path / "r", n=3, rows=40)
    fill(replay, 10)
    rows = TensorDict.load_memmap(tmp_path / "r" / "data")
    assert rows.batch_size == (3, 40) and rows["reward"][2, 9] == 29
