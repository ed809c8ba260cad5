"""Old recordings: a folder written as record.py writes it, read back row by row through the agent that made it (T5)."""

from __future__ import annotations

import csv
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.simulator import tiny
from torchmem import cli
from torchmem.models.importers.irl_recording import COLUMNS, SAMPLE, OldRecordingError, import_irl_recording
from torchmem.recording import Recording

GAMES, LENGTHS = 2, (5, 3, 1, 6)  # games in lock-step; frames of their episodes in turn, the closing one not counted


class Games:
    """Random frames; ends come with the first frame of the next level, as in Procgen."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.level = list(range(100, 100 + GAMES))
        self.left = [LENGTHS[i % len(LENGTHS)] for i in range(GAMES)]
        self.opened = GAMES

    def frame(self) -> np.ndarray:
        return self.rng.integers(20, 255, (GAMES, 3, 64, 64), dtype=np.uint8)

    def step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        done = np.zeros(GAMES, bool)
        for i in range(GAMES):
            self.left[i] -= 1
            if self.left[i] == 0:
                done[i] = True
                self.level[i] = 100 + self.opened
                self.left[i] = LENGTHS[self.opened % len(LENGTHS)]
                self.opened += 1
        return self.frame(), 10.0 * done + 0.25, done, list(self.level)


@torch.no_grad()
def act(agent, frames: np.ndarray, hidden: torch.Tensor, first: np.ndarray):
    """(memory after, value, log-probabilities) of frames (n, 3, 64, 64) seen with a memory."""
    carry = agent.initial(len(frames))._replace(hidden=hidden)
    image = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 2, 3, 1)))
    seen = {"image": image, "is_first": torch.from_numpy(first)}
    _, carry, _ = agent.policy(seen, carry, agent.acting_noise(len(frames), None))
    read = agent.read_out(carry)
    return carry.hidden, read["value"], torch.log_softmax(read["logits.action"], -1)


def write(folder: Path, agent, steps: int = 24) -> None:
    """The recorder's loop: the row with an end has a black frame, and all else of the next episode's first frame."""
    games = Games()
    rows: list[list[dict]] = [[] for _ in range(GAMES)]
    held: list[dict[str, list]] = [{"ob": [], "hx": [], "lp": []} for _ in range(GAMES)]
    number, age, newest = list(range(GAMES)), [0] * GAMES, GAMES - 1
    frames, done, reward = games.frame(), np.zeros(GAMES, bool), np.zeros(GAMES)
    hidden = torch.full((GAMES, 6), 0.3)
    for step in range(steps):
        after, value, logp = act(agent, frames, hidden, done)
        action = logp.argmax(-1).numpy()
        following, next_reward, next_done, levels = games.step()
        for i in range(GAMES):
            told = (levels[i], number[i], step, age[i], done[i], reward[i], f"[{float(value[i])!r}]", action[i])
            rows[i].append(dict(zip(COLUMNS, told, strict=True)))
            held[i]["ob"].append(frames[i] * (not done[i]))
            held[i]["hx"].append(hidden[i].numpy())
            held[i]["lp"].append(logp[i].numpy())
            if done[i]:
                held[i]["hx"].append(after[i].numpy())
                home = folder / f"episode_{number[i]:05d}"
                home.mkdir(parents=True)
                for name, values in held[i].items():
                    np.save(home / f"{name}.npy", np.stack(values).squeeze())
                text = io.StringIO()
                table = csv.DictWriter(text, ["", *COLUMNS])
                table.writeheader()
                table.writerows({"": n, **row} for n, row in enumerate(rows[i]))
                (folder / f"data_gen_model_{number[i]:05d}.csv").write_text(text.getvalue())
                (folder / f"sample_{number[i]:05d}.mp4").write_bytes(b"film")
                rows[i], held[i] = [], {"ob": [], "hx": [], "lp": []}
                newest += 1
                number[i], age[i] = newest, 0
            age[i] += 1
        frames, reward, done, hidden = following, next_reward, next_done, after
    (folder / "idx_to_episode.csv").write_text("global_step,episode\n")


@pytest.fixture
def old(tmp_path):
    agent = tiny.ppo(tiny.IMAGE, core="gru", learned_start=False, see_action=False)
    write(tmp_path / "log" / "data", agent)
    return agent, tmp_path / "log", tmp_path / "rec"


def test_every_row_is_what_the_agent_made_of_its_frame(old):
    agent, source, out = old
    rec = import_irl_recording(source, out)
    frames = rec.covariates["obs.image"][:].transpose(0, 3, 1, 2)
    before = torch.from_numpy(rec.activations["memory_before"][:])
    hidden, value, logp = act(agent, frames, before, np.zeros(len(frames), bool))
    np.testing.assert_allclose(rec.activations["memory"][:], hidden, atol=1e-6)
    np.testing.assert_allclose(rec.covariates["value"][:], value, atol=1e-6)
    np.testing.assert_allclose(rec.covariates["logits.action"][:], logp, atol=1e-6)
    np.testing.assert_array_equal(rec.covariates["action"][:], logp.argmax(-1))
    opens = rec.step == 0
    np.testing.assert_array_equal(rec.activations["memory_before"][1:][~opens[1:]],
                                  rec.activations["memory"][:-1][~opens[1:]])  # fmt: skip


def test_black_frames_go_and_what_came_with_them_stays(old):
    _, source, out = old
    rec = import_irl_recording(source, out)
    frames = rec.covariates["obs.image"][:]
    assert frames.reshape(len(frames), -1).any(1).all()
    started = rec.covariates["env_step"][rec.step == 0]
    assert started.tolist()[:GAMES] == [0] * GAMES and (started[GAMES:] == 1).all(), "the second frame of the others"
    last = rec.covariates["is_last"][:]
    np.testing.assert_array_equal(rec.covariates["ended_after"][:], last)
    np.testing.assert_allclose(rec.covariates["reward_after"][:], 10.0 * last + 0.25)
    assert not rec.covariates["is_terminal"][:].any() and rec.episodes["complete"].all()
    lengths = [LENGTHS[i % 4] - (i >= GAMES) for i in range(20)]  # the first frame was lost
    kept = [length for length in lengths if length]
    assert rec.episodes["length"].tolist() == kept[: len(rec.episodes)]
    numbers = [i for i, length in enumerate(lengths) if length][: len(rec.episodes)]
    long = rec.episodes["length"] >= 3
    assert (rec.episodes["seed"] == np.array(numbers) + 100)[long].all(), "levels, whatever the edges of episodes say"
    assert rec.provenance.caveats and "noised policy" in rec.provenance.caveats[0]


def test_closing_rows_can_be_kept(old):
    _, source, out = old
    dropped, kept = import_irl_recording(source, out), import_irl_recording(source, out.with_name("kept"), ends="keep")
    assert (kept.episodes["length"] == dropped.episodes["length"] + 1).all()
    last = kept.covariates["is_last"][:]
    assert last.sum() == len(kept.episodes) and (kept.covariates["is_terminal"][:] == last).all()
    assert not kept.covariates["obs.image"][last].any() and (kept.covariates["reward"][last] == 10.25).all()
    for name in ("obs.image", "reward", "action", "level_seed"):
        np.testing.assert_array_equal(kept.covariates[name][~last], dropped.covariates[name][:])
    np.testing.assert_array_equal(kept.activations["memory"][last], dropped.activations["memory"][
        dropped.covariates["is_last"][:]])  # fmt: skip


def test_the_command_and_simulated_samples(tmp_path, capsys):
    rng = np.random.default_rng(0)
    shapes = dict(zip(SAMPLE, [(4, 8, 8, 3), (4,), (4, 1), (4, 6), (4, 15), (4, 1), (4, 32), (12,)], strict=True))
    arrays = []
    for sample in range(3):
        home = tmp_path / "informed_init" / f"sample_{sample:05d}"
        home.mkdir(parents=True)
        arrays.append({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
        arrays[-1]["ims"] = rng.integers(255, size=shapes["ims"], dtype=np.uint8)
        for name, values in arrays[-1].items():
            np.save(home / f"{name}.npy", values)
        np.save(home / "grad_hx_value.npy", np.zeros(3))
    words = ["import", "irl-recording", str(tmp_path / "informed_init"), "--out", str(tmp_path / "rec")]
    assert cli.main(words) == 0 and "CAVEAT: simulated" in capsys.readouterr().out
    rec = Recording(tmp_path / "rec")
    assert len(rec.episodes) == 3
    for sample, told in enumerate(arrays):
        at = rec.rows(sample)
        np.testing.assert_array_equal(rec.activations["memory"][at], told["agent_hs"])
        np.testing.assert_array_equal(rec.activations["world"][at], told["env_hs"])
        np.testing.assert_array_equal(rec.activations["latent"][at], told["bottleneck_vec"][None].repeat(4, 0))
        np.testing.assert_array_equal(rec.covariates["obs.image"][at], told["ims"])
        np.testing.assert_array_equal(rec.covariates["action"][at], told["agent_logprobs"].argmax(1))
        np.testing.assert_array_equal(rec.covariates["done"][at], told["dones"][:, 0])


def test_what_is_strange_is_named(old, tmp_path):
    _, source, out = old
    data = source / "data"
    home = data / "episode_00001"

    def refused(match: str) -> None:
        with pytest.raises(OldRecordingError, match=match):
            import_irl_recording(source, out.with_name("other"))
        if (out.with_name("other") / "recording.json").exists():
            assert not Recording(out.with_name("other")).finished

    (data / "notes.txt").touch()
    refused("notes.txt is not of this layout")
    (data / "notes.txt").unlink()
    (home / "ob_2.npy").touch()
    refused(r"ob_2\.npy is not of this layout")
    (home / "ob_2.npy").unlink()
    frames, states = np.load(home / "ob.npy"), np.load(home / "hx.npy")
    logp = np.load(home / "lp.npy")
    np.save(home / "hx.npy", states[:-1])
    refused(r"hx\.npy has shape")
    (home / "hx.npy").write_bytes(pickle.dumps(states))
    refused(r"hx\.npy is no plain array")
    np.save(home / "hx.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(r"hx\.npy is no plain array")
    np.save(home / "hx.npy", states)
    np.save(home / "ob.npy", np.maximum(frames, 1))
    refused("black in its last frame alone")
    np.save(home / "ob.npy", frames)
    table = data / "data_gen_model_00001.csv"
    text = table.read_text()
    table.write_text(text.replace("level_seed", "seed"))
    refused("lacks level_seed")
    table.write_text(text.replace("True", "False"))
    refused("done in its last row alone")
    table.unlink()
    refused("data_gen_model_00001.csv is missing")
    table.write_text(text)
    (home / "lp.npy").unlink()
    refused(r"episode_00001 lacks lp\.npy")
    np.save(home / "lp.npy", logp)
    went_on, at_once = import_irl_recording(source, out.with_name("other")), import_irl_recording(source, out)
    assert went_on.finished and (went_on.episodes == at_once.episodes).all()
    np.testing.assert_array_equal(went_on.activations["memory"][:], at_once.activations["memory"][:])
    with pytest.raises(FileExistsError, match="another folder"):
        import_irl_recording(source, out)
    with pytest.raises(OldRecordingError, match="neither episode"):
        import_irl_recording(tmp_path / "log" / "data" / "episode_00000", out)
    with pytest.raises(OldRecordingError, match="drop or keep"):
        import_irl_recording(source, out, ends="maybe")
