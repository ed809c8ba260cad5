"""The Memory Maze benchmark: its format, what counts, what the probes can and cannot read, every agent."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from torchmem import cli
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.result import load_result
from torchmem.studies.maze.features import Steps, Truth, read_sites, stream, truth_of
from torchmem.studies.maze.heads import Head, HeadPlan, Source, fit_head
from torchmem.studies.maze.scores import BINS, ball_squares, by_age, constant, predict, walls_right
from torchmem.studies.maze.sight import age, in_view
from torchmem.studies.maze.study import default_sites, study_maze
from torchmem.studies.maze.teach import LossExploded, OracleLesson, TeachPlan, WorldLesson, teach_oracle
from torchmem.studies.maze.trajectories import FORM, MazeSet, MazeSetError, Trajectory, open_set, read, write
from torchmem.surgery.model import Model

SIDE, BALLS, STEPS = 7, 2, 24
TINY = HeadPlan(hidden=32, layers=2, updates=20, batch=64, check=10)


def arrays(seed: int, steps: int = STEPS) -> dict[str, np.ndarray]:
    """A made-up trajectory: a random maze, a place that drifts, pictures of noise."""
    rng = np.random.default_rng(seed)
    length = steps + 1
    taken = rng.integers(6, size=length)
    action = np.eye(6, dtype=np.uint8)[taken]
    action[0] = 0
    angle = rng.uniform(-np.pi, np.pi, length)
    targets = rng.uniform(0, SIDE, (BALLS, 2))
    pos = rng.uniform(0, SIDE, (length, 2))
    ahead = np.stack([np.cos(angle), np.sin(angle)], -1)
    right = np.stack([ahead[:, 1], -ahead[:, 0]], -1)
    offset = targets[None] - pos[:, None]
    vec = np.stack([(offset * right[:, None]).sum(-1), (offset * ahead[:, None]).sum(-1)], -1)
    return {
        "image": rng.integers(256, size=(length, 64, 64, 3), dtype=np.uint8), "action": action,
        "reward": rng.random(length), "agent_pos": pos, "agent_dir": ahead,
        "maze_layout": np.repeat(rng.integers(2, size=(1, SIDE, SIDE), dtype=np.uint8), length, 0),
        "targets_pos": np.repeat(targets[None], length, 0), "targets_vec": vec,
        "target_pos": np.repeat(targets[:1], length, 0), "target_vec": vec[:, 0], "target_color": np.ones((length, 3)),
    }  # fmt: skip


def fill(folder, train: int = 4, held: int = 2):
    for i in range(train + held):
        write(folder / ("train" if i < train else "eval") / f"{i}.npz", arrays(i))
    return folder


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("set"))


def dreamer() -> DreamerAgent:
    torch.manual_seed(0)
    sizes = {"deter": 16, "hidden": 8, "stoch": 4, "classes": 4, "blocks": 2, "depth": 2, "units": 8}
    return DreamerAgent(env_spec("memory_maze", size=7), DreamerConfig(**sizes, imag_length=2))


def r2i() -> R2IAgent:
    torch.manual_seed(0)
    sizes = {"deter": 12, "units": 16, "stoch": 4, "classes": 4, "depth": 4, "vector_units": 16, "head_units": 16}
    ssm = SSMConfig(layers=2, states=8, blocks=2)
    return R2IAgent(env_spec("memory_maze", size=7), R2IConfig(**sizes, ssm=ssm, imag_length=2))


def ppo() -> PPOAgent:
    torch.manual_seed(0)
    sizes = {"units": 16, "encoder_units": 8, "head_units": 8, "image_channels": [4], "image_units": 8}
    return PPOAgent(env_spec("memory_maze", size=7), PPOConfig(core="gru", head_layers=1, **sizes))


# The format -----------------------------------------------------------------------------------------------------------


def test_a_trajectory_comes_back_with_the_action_beside_the_picture_it_followed(tmp_path):
    made = arrays(0)
    walk = read(write(tmp_path / "a.npz", made))
    np.testing.assert_array_equal(walk.image, made["image"])
    np.testing.assert_array_equal(np.eye(6, dtype=np.uint8)[walk.action[:-1]], made["action"][1:])
    assert walk.action[-1] == 0
    np.testing.assert_array_equal(walk.layout, made["maze_layout"][0] == 1)
    np.testing.assert_allclose(walk.vec, made["targets_vec"], rtol=1e-6)


def test_files_that_do_not_fit_are_named_with_their_key(tmp_path):
    made = arrays(0)
    with pytest.raises(MazeSetError, match=r"agent_dir is \(25, 3\), expected \(25, 2\)"):
        write(tmp_path / "a.npz", made | {"agent_dir": np.zeros((25, 3))})
    with pytest.raises(MazeSetError, match=r"maze_layout is \(25, 7, 6\), expected \(25, 7, 7\)"):
        write(tmp_path / "a.npz", made | {"maze_layout": np.zeros((25, 7, 6))})
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "short.npz", **{k: made[k] for k in FORM if k != "targets_vec"})
    with pytest.raises(MazeSetError, match=r"short\.npz has no targets_vec"):
        read(tmp_path / "short.npz")
    np.savez(tmp_path / "evil.npz", **(made | {"action": np.array([print], dtype=object)}))
    with pytest.raises(MazeSetError, match=r"evil\.npz cannot be read .*allow_pickle"):
        read(tmp_path / "evil.npz")
    whole = write(tmp_path / "torn.npz", made).read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MazeSetError, match=r"torn\.npz cannot be read"):
        read(tmp_path / "torn.npz")


def test_no_maze_is_in_training_and_evaluation(tmp_path, caplog):
    fill(tmp_path / "split", train=2, held=1)
    write(tmp_path / "split" / "eval" / "again.npz", arrays(0))  # a training maze
    train, held = open_set(tmp_path / "split")
    assert [f.name for f in held.files] == ["2.npz"] and len(train) == 2
    assert "1 of 2 evaluation trajectories are left out" in caplog.text
    for i in range(12):  # a plain folder: ten mazes, two of them twice
        write(tmp_path / "plain" / f"{i:02d}.npz", arrays(i % 10))
    train, held = open_set(tmp_path / "plain", held_out=0.3)
    assert len({*train.layouts()}) == 7 and len({*held.layouts()}) == 3
    assert not {*train.layouts()} & {*held.layouts()} and len(train) + len(held) == 12
    with pytest.raises(MazeSetError, match="0 training trajectories and 0 in other mazes"):
        open_set(tmp_path)
    with pytest.raises(MazeSetError, match="is no folder"):
        open_set(tmp_path / "nowhere")


# What counts ----------------------------------------------------------------------------------------------------------


def test_a_ball_is_in_view_within_forty_degrees_and_not_through_a_wall():
    layout = np.ones((5, 5), bool)
    layout[2, 2] = False
    heading = np.array([0.0, 0.0, 0.0, np.pi, np.pi / 2])
    pos = np.array([[0.5, 2.5], [0.5, 0.5], [3.5, 2.5], [4.5, 2.5], [4.5, 0.5]])
    ball = np.array([4.5, 2.5])
    ahead = np.stack([np.cos(heading), np.sin(heading)], -1)
    right = np.stack([ahead[:, 1], -ahead[:, 0]], -1)
    offset = ball - pos
    vec = np.stack([(offset * right).sum(-1), (offset * ahead).sum(-1)], -1)[:, None]
    none = np.zeros(0)
    seen = in_view(Trajectory(none, none, none, layout, pos, ahead, vec))
    # behind the wall; beside it, 27 degrees off; close; it stands on the ball; from below, straight ahead
    assert seen[:, 0].tolist() == [False, True, True, True, True]
    turned = in_view(Trajectory(none, none, none, layout, pos, -ahead, -vec))
    assert seen[2, 0] and not turned[2, 0]


def test_age_counts_from_the_last_sight():
    seen = np.array([[0, 1], [1, 0], [0, 0], [0, 1], [1, 0]], bool)
    np.testing.assert_array_equal(age(seen), [[-1, 0], [0, 1], [1, 2], [2, 0], [0, 1]])


def planted(mazes: int = 40, steps: int = 20, seed: int = 0) -> tuple[Truth, torch.Tensor]:
    """Random truth, and a latent that holds walls and balls, turned by a random matrix."""
    draw = torch.Generator().manual_seed(seed)
    walls = (torch.rand(mazes, 9, generator=draw) < 0.5).float()
    balls = torch.randn(mazes, steps, BALLS, 2, generator=draw)
    place = torch.randn(mazes, steps, 4, generator=draw)
    ages = torch.randint(-1, 300, (mazes, steps, BALLS), generator=draw)
    held = torch.cat([walls[:, None].expand(-1, steps, -1), balls.flatten(2)], -1)
    turn = torch.linalg.qr(torch.randn(13, 13, generator=torch.Generator().manual_seed(9)))[0]
    return Truth(walls, place, balls, ages), (held @ turn).half()


def test_probes_read_what_is_planted_and_nothing_else():
    plan = dataclasses.replace(TINY, updates=600, hidden=64, lr=2e-3, check=50)
    (truth, latent), (asked, other) = planted(), planted(12, seed=1)

    def scores(train, test):
        wall = predict(fit_head("walls", Source(train, truth, False), plan), Source(test, asked, False))
        ball = predict(fit_head("balls", Source(train, truth, False), plan), Source(test, asked, False))
        return walls_right(wall, asked).mean(), ball_squares(ball, asked).mean().sqrt().item()

    walls, balls = scores(latent, other)
    assert walls > 0.98 and balls < 0.4
    guess_walls, guess_balls = constant(truth)
    chance = walls_right(guess_walls, asked).mean(), ball_squares(guess_balls, asked).mean().sqrt().item()
    assert chance[0] < 0.6 and chance[1] == pytest.approx(2**0.5, abs=0.15)
    walls, balls = scores(latent[torch.randperm(40)], other[torch.randperm(12)])  # of other mazes
    assert walls < 0.62 and balls > 1.2
    early, late = latent.clone(), other.clone()
    early[:, 10:] = late[:, 10:] = 0  # known in the first half only, which does not count
    walls, balls = scores(early, late)
    assert walls < 0.62 and balls > 1.2


def test_the_mazes_that_say_when_to_stop_are_not_learned_from(monkeypatch):
    calls: list[set[int]] = []
    rows = Source.rows

    def watched(self, i, t):
        calls.append(set(i.tolist()))
        return rows(self, i, t)

    monkeypatch.setattr(Source, "rows", watched)
    truth, latent = planted()
    fit_head("balls", Source(latent, truth, False), TINY)
    scaling, *fits = [mazes for n, mazes in enumerate(calls) if n == 0 or n % (TINY.check + 1)]
    judged = [mazes for n, mazes in enumerate(calls) if n and not n % (TINY.check + 1)]
    assert len(fits) == TINY.updates and len(judged) == TINY.updates // TINY.check
    assert all(mazes == judged[0] for mazes in judged) and len(judged[0]) == round(TINY.held_out * 40)
    assert not any(mazes & judged[0] for mazes in (scaling, *fits))


def test_a_probe_that_learns_by_heart_is_stopped():
    """Latents that say nothing of the balls: the longer it fits, the worse it gets elsewhere, so early weights stay."""
    plan = dataclasses.replace(TINY, updates=1500, hidden=64, lr=3e-3, check=50, decay=0.0)
    truth, asked = planted(6)[0], planted(30, seed=1)[0]
    draw = torch.Generator().manual_seed(2)
    noise, other = torch.randn(6, 20, 13, generator=draw), torch.randn(30, 20, 13, generator=draw)
    head = fit_head("balls", Source(noise.half(), truth, False), plan)
    error = ball_squares(predict(head, Source(other.half(), asked, False)), asked).mean().sqrt()
    assert error < 1.6  # 1.41 by the mean, 2.0 by heart


def test_errors_by_age_count_every_ball_of_the_second_half_once():
    truth, _ = planted()
    squares = ball_squares(constant(truth)[1], truth)
    error, count = by_age(squares, truth)
    late = truth.age[:, 10:].flatten()
    wanted = [(late == 0).sum(), ((late > 0) & (late <= 5)).sum(), ((late > 5) & (late <= 10)).sum(),
              ((late > 10) & (late <= 50)).sum(), ((late > 50) & (late <= 200)).sum(), (late > 200).sum(), 0,
              (late < 0).sum()]  # fmt: skip
    assert count.tolist() == [int(n) for n in wanted] and len(BINS) == len(count) and np.isnan(error[6])
    there = (late > 50) & (late <= 200)
    assert error[4] == pytest.approx(squares.flatten()[there].mean().sqrt().item(), rel=1e-5)


# Along trajectories ---------------------------------------------------------------------------------------------------


def test_the_stream_goes_through_whole_trajectories_from_staggered_starts(walks):
    train, _ = open_set(walks)
    batches = stream(train, 3, 10, np.random.default_rng(0))
    parts = [next(batches) for _ in range(8)]
    first = torch.cat([p.is_first for p in parts], 1)
    assert first[:, 0].all()
    starts = [row.nonzero().squeeze(1).tolist() for row in first]
    assert len({row[1] for row in starts}) > 1  # they do not begin together
    assert all(b - a == STEPS + 1 for row in starts for a, b in itertools.pairwise(row[1:]))
    image, action = torch.cat([p.image for p in parts], 1), torch.cat([p.action for p in parts], 1)
    begin = starts[0][1]
    whole = next(w for w in train if np.array_equal(w.image[0], image[0, begin].numpy()))
    np.testing.assert_array_equal(image[0, begin : begin + STEPS + 1], whole.image)
    np.testing.assert_array_equal(action[0, begin : begin + STEPS + 1], whole.action)


def cut(steps: Steps, part: slice) -> Steps:
    return Steps(*(getattr(steps, f.name)[:, part] for f in dataclasses.fields(Steps)))


@pytest.mark.parametrize("make", [dreamer, r2i])
def test_the_world_model_learns_on_from_where_it_stood(walks, make):
    """The loss of a stretch does not depend on how it was cut, but for a stretch that forgot its beginning it does."""
    agent = make()
    if isinstance(agent, R2IAgent):
        agent.config = dataclasses.replace(agent.config, stored_start=True)
    batch = next(stream(open_set(walks)[0], 2, 20, np.random.default_rng(3)))
    with torch.no_grad():
        whole = WorldLesson(agent)(batch, None)
        lesson = WorldLesson(agent)
        parts = [lesson(cut(batch, slice(0, 10)), None), lesson(cut(batch, slice(10, 20)), None)]
        fresh = WorldLesson(agent)(cut(batch, slice(10, 20)), None)
    assert float(sum(parts)) / 2 == pytest.approx(float(whole), rel=1e-5)
    assert abs(float(fresh) - float(parts[1])) > 5e-4 * abs(float(parts[1]))


@pytest.mark.parametrize("make", [dreamer, r2i, ppo])
def test_the_oracle_sends_gradients_into_the_agent_and_remembers(walks, make):
    model = Model(make())
    batch = next(stream(open_set(walks)[0], 2, 20, np.random.default_rng(3)))
    sites = default_sites(model)
    width = sum(int(np.prod(model.find(s).shape)) for s in sites)
    torch.manual_seed(0)
    probes = {"walls": Head(torch.zeros(width + 4), torch.ones(width + 4), SIDE * SIDE, TINY),
              "balls": Head(torch.zeros(width), torch.ones(width), BALLS * 2, TINY)}  # fmt: skip
    lesson = OracleLesson(model, sites, probes, TINY)
    whole = OracleLesson(model, sites, probes, TINY)(batch, None)
    parts = [lesson(cut(batch, slice(0, 10)), None), lesson(cut(batch, slice(10, 20)), None)]
    assert float(sum(parts).detach()) / 2 == pytest.approx(float(whole.detach()), rel=1e-4)
    whole.backward()
    encoder = [p.grad for name, p in model.agent.named_parameters() if "encoder" in name]
    assert encoder and all(g is not None and g.abs().sum() > 0 for g in encoder)


def test_sites_are_those_of_one_pass_however_it_is_cut(walks):
    model, train = Model(ppo()), open_set(walks)[0]
    whole = read_sites(model, train, ["memory"], rows=4, chunk=STEPS + 1)
    assert whole.shape == (4, STEPS + 1, 16)
    torch.testing.assert_close(read_sites(model, train, ["memory"], rows=3, chunk=7), whole, atol=2e-3, rtol=0)
    alone = read_sites(model, MazeSet(train.files[2:3]), ["memory"], chunk=5)
    torch.testing.assert_close(alone[0], whole[2], atol=2e-3, rtol=0)


# The study ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dreamer, r2i, ppo])
def test_the_study_has_every_row_for_every_agent_and_goes_on_where_it_stopped(walks, tmp_path, make, monkeypatch):
    model = Model(make())
    asked_for = []

    def watched(kind, source, *rest, fit=fit_head):
        asked_for.append((kind, source.place, source.latent is not None))
        return fit(kind, source, *rest)

    monkeypatch.setattr("torchmem.studies.maze.study.fit_head", watched)
    before = {k: v.clone() for k, v in model.agent.state_dict().items()}
    teach = TeachPlan(updates=2, rows=2, length=6)
    found = study_maze(model, tmp_path / "s", walks, heads=TINY, teach=teach)["benchmark"]
    learned = ["learned here"] if make is not ppo else []
    assert list(found.rows) == ["constant", "place alone", "untrained", "agent", *learned, "oracle"]
    assert all(torch.equal(v, before[k]) for k, v in model.agent.state_dict().items())
    alone, *others = asked_for[:2], *(asked_for[i : i + 2] for i in range(2, len(asked_for), 2))
    assert alone == [("walls", True, False), ("balls", True, False)]
    assert all(pair == [("walls", True, True), ("balls", False, True)] for pair in others)  # as pydreamer has it
    assert found.mazes == (4, 2) and found.size == SIDE and found.steps == STEPS
    assert load_result(tmp_path / "s" / "benchmark") == found
    for name in ("benchmark.csv", "report.html", "agent/figure.png"):
        assert (tmp_path / "s" / name).is_file()
    when = (tmp_path / "s" / "oracle" / "result.json").stat().st_mtime_ns
    assert study_maze(model, tmp_path / "s", walks, heads=TINY, teach=teach)["benchmark"] == found
    assert (tmp_path / "s" / "oracle" / "result.json").stat().st_mtime_ns == when
    walls, balls = constant(truth_of(open_set(walks)[0]))
    asked = truth_of(open_set(walks)[1])
    assert found.rows["constant"]["walls"] == pytest.approx(100 * walls_right(walls, asked).mean())
    assert found.rows["constant"]["balls"] == pytest.approx(ball_squares(balls, asked).mean().sqrt().item(), rel=1e-5)


def test_an_oracle_that_explodes_says_so(walks):
    agent = ppo()
    with torch.no_grad(), pytest.raises(LossExploded, match="oracle: the loss is nan at update 0: lower the rate"):
        model = Model(agent)
        train = open_set(walks)[0]
        bad = dataclasses.replace(TINY, hidden=4)
        broken = [dataclasses.replace(walk, vec=walk.vec * np.nan) for walk in train]
        teach_oracle(model, _Fixed(broken), ["memory"], TeachPlan(updates=1, rows=1, length=3), bad)


class _Fixed(MazeSet):
    """Trajectories in memory."""

    def __init__(self, walks):
        super().__init__([])
        self.walks = walks

    def __len__(self):
        return len(self.walks)

    def __getitem__(self, i):
        return self.walks[i]


def test_wrong_agents_sets_and_folders_are_told_at_once(walks, tmp_path, capsys):
    torch.manual_seed(0)
    small = PPOConfig(core="gru", units=8, encoder_units=8, head_units=8, head_layers=1)
    save_agent(PPOAgent(env_spec("minigrid_memory"), small), tmp_path / "grid")
    save_agent(ppo(), tmp_path / "maze")
    fill(tmp_path / "odd", 1, 1)
    write(tmp_path / "odd" / "train" / "long.npz", arrays(7, steps=30))
    for args, said in (
        (["grid", "--data", str(walks)], "take an agent that was trained with env=memory_maze"),
        (["maze", "--data", str(tmp_path / "odd")], "has another length, size or number of balls"),
        (["maze", "--data", str(tmp_path / "none")], "is no folder"),
        (["maze", "--data", str(walks), "--sites", "memroy"], "nearest: memory"),
    ):
        code = cli.main(["study", "maze", str(tmp_path / args[0]), *args[1:], "--out", str(tmp_path / "out")])
        assert code and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
