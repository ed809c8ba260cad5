"""What the page holds is what was recorded and measured; what was not given is not there."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.studies.panel.conftest import AT, SAMPLES, STEPS, K
from torchmem import cli
from torchmem.envs.make import env_spec
from torchmem.recording import Recording
from torchmem.studies.looks import action_names, pictures, view_side
from torchmem.studies.panel.build import gather, make_panel
from torchmem.studies.panel.overlay import overlay, ways_shown
from torchmem.studies.panel.packing import pack, pack_picture
from torchmem.studies.panel.samples import Sample, pair_edited
from torchmem.studies.simulate import simulate


def unpack(packed: dict) -> np.ndarray:
    kind = {"u1": np.uint8, "i1": np.int8, "i2": np.int16}[packed["kind"]]
    array = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), kind).reshape(packed["shape"])
    if "scale" not in packed:
        return array
    return np.where(array == np.iinfo(kind).min, np.nan, array.astype(float) * packed["scale"])


def read(page: Path) -> dict:
    found = re.findall(r"<script id=(\w+) type=application/json>(.*?)</script>", page.read_text(), re.S)
    return {name: json.loads(text) for name, text in found}


def test_arrays_come_back():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    assert np.array_equal(unpack(pack(frames)), frames)
    assert np.array_equal(unpack(pack(np.array([-1, 0, 300]))), [-1, 0, 300])
    values = rng.normal(size=(7, 2))
    values[3, 1] = np.nan
    np.testing.assert_allclose(unpack(pack(values)), values, atol=np.nanmax(np.abs(values)) / 60000)
    np.testing.assert_allclose(unpack(pack_picture(values)), values, atol=np.nanmax(np.abs(values)) / 60)
    assert np.array_equal(unpack(pack(np.zeros(3))), np.zeros(3)) and unpack(pack(np.zeros((2, 0)))).shape == (2, 0)
    with pytest.raises(ValueError, match="16 bits"):
        pack(np.array([40000]))


def test_the_page_holds_what_was_recorded(made):
    found = read(made.page)
    meta, table = found["meta"], found["table"]
    assert meta["schema"] == {"name": "torchmem.panel", "version": 1}
    assert [s["source"] for s in meta["samples"]] == ["real"] * 6 + ["simulated"] * SAMPLES
    lengths = [s["steps"] for s in meta["samples"]]
    assert lengths[6:] == [STEPS] * SAMPLES and lengths[:6] == made.rec.episodes["length"][:6].tolist()
    rows = slice(0, sum(lengths[:6]))
    value = unpack(table["value"])
    both = np.concatenate([made.rec.covariates["value"][rows], made.sim.covariates["value"][:]])
    np.testing.assert_allclose(value, both, atol=1e-4 * np.abs(both).max())  # 16 bits
    assert len(np.unique(both)) > 50
    for k in range(K):
        y = made.directions.scores(made.sim.activations["memory"][:])[:, k]
        np.testing.assert_allclose(unpack(table[f"score.{k}"])[rows.stop :], y, atol=1e-3 * np.abs(y).max() + 1e-6)
    last = made.rec.covariates["is_last"][rows]
    action = np.where(last, -1, made.rec.covariates["action"][rows])
    assert np.array_equal(unpack(table["action"])[rows], action)
    assert np.array_equal(unpack(found["blob2"]["frames"]), made.rec.covariates["obs.image"][made.rec.rows(2)])
    logits = made.sim.covariates["logits.action"][made.sim.rows(1)]
    lines = unpack(found["blob7"]["lines"])
    np.testing.assert_allclose(np.exp(lines).sum(1), 1, atol=1e-3)
    np.testing.assert_allclose(lines, logits - np.log(np.exp(logits).sum(1, keepdims=True)), atol=1e-3)


def test_the_page_holds_what_was_measured(made):
    found = read(made.page)
    meta, table = found["meta"], found["table"]
    assert meta["saliency"]["ways"] == ["total", "internal", "external"] and meta["saliency"]["at"] == AT
    blob = found["blob8"]  # simulated 2
    for way in meta["saliency"]["ways"]:
        for k in range(len(made.saliency.scalars)):
            grad = made.saliency.slopes[f"{way}.obs.image"][k, 2]
            got = unpack(blob[f"saliency.{way}.{k}"])
            np.testing.assert_allclose(got, grad, atol=np.abs(grad).max() / 50 + 1e-12)
    whole = unpack(table["grad.internal.1"])
    start = sum(s["steps"] for s in meta["samples"][:8])
    grad = made.saliency.slopes["internal.directions"][1, 2]
    np.testing.assert_allclose(whole[start : start + AT + 1], grad, atol=1e-3 * np.abs(whole[np.isfinite(whole)]).max())
    assert np.isnan(whole[start + AT + 1 : start + STEPS]).all() and np.isnan(whole[:5]).all()
    mine = (made.clusters.recording == 1) & (made.clusters.episode == 2)
    assert np.array_equal(unpack(table["cluster"])[start : start + STEPS], made.clusters.label[mine])
    pair = Recording(made.home / "edited")
    assert np.array_equal(unpack(blob["edited.frames"]), pair.covariates["obs.image"][pair.rows(2)])
    assert meta["edit"] and meta["samples"][8]["edited"] and not meta["samples"][0]["edited"]
    assert set(meta["dynamics"]["matrices"]) == {"slope, total", "slope, internal", "slope, external", "correlation",
                                                 "regression"}  # fmt: skip
    assert set(meta["intervention"]["places"]) == {"simulator", "world"}


def test_what_was_not_given_is_not_there(made, tmp_path):
    page = make_panel(made.agent, tmp_path / "plain", recording=made.rec.path, episodes=3, samples=2, allow=True)
    assert page == tmp_path / "plain" / "panel.html"
    found = read(page)
    assert [s["source"] for s in found["meta"]["samples"]] == ["real"] * 3 + ["simulated"] * 2
    assert not {"directions", "saliency", "slopes", "clusters", "edit", "dynamics", "intervention"} & set(found["meta"])
    text = page.read_text().partition("<script")[0]
    for name in ("scatter", "overlay", "edited", "c_list", "matrix", "effects", "extrema", "bar_plot"):
        assert f"id={name}" not in text, name
    assert "<!--" not in text and "http" not in text
    full = made.page.read_text().partition("<script")[0]
    assert all(f"id={name}" in full for name in ("scatter", "overlay", "edited", "c_list", "matrix", "effects"))


def test_rollouts_made_here_are_those_of_the_saliency_and_have_pairs(made, tmp_path):
    nothing = {"simulated": None, "edited": (), "dynamics": None, "intervene": None, "clusters": None}
    how = {"recording": made.rec.path, "episodes": 2, "steps": 9, "samples": 2, "horizon": 3, "init": "real",
           "guess": False, "seed": 5, "batch": 32, "device": "cpu", "allow": True, **nothing}  # fmt: skip
    found = gather(made.agent, directions=made.directions, saliency=made.folders["saliency"], edits=made.edits,
                   edit_name="0 at 2", **how)  # fmt: skip
    assert len(found.samples) == 2 + SAMPLES, "as many as the saliency has, whatever was said"
    np.testing.assert_allclose(found.samples[4].value[:AT], made.saliency.agent_value[2, :AT], rtol=1e-4)
    assert found.meta["edit"] == "0 at 2" and all(s["edited"] for s in found.meta["samples"][2:])
    other = simulate(made.agent, tmp_path / "other", recording=made.rec.path, samples=SAMPLES, seed=1, allow=True)
    with pytest.raises(ValueError, match="other rollouts"):
        gather(made.agent, directions=None, saliency=made.folders["saliency"], edits=(), edit_name="",
               **{**how, "simulated": other.path, "samples": SAMPLES})  # fmt: skip


def test_pairs_are_found_by_seed_and_start():
    def one(source: str, number: int, origin: tuple[int, int], seed: int) -> Sample:
        none = np.zeros(2)
        return Sample(f"{source} {number}", source, number, origin, seed, none, none, none, {}, {})

    plain = [one("real", 0, (0, 0), 70), one("real", 1, (1, 0), 71), one("simulated", 0, (3, 5), -1)]
    others = [one("real", 5, (5, 0), 71), one("simulated", 0, (3, 5), -1), one("simulated", 1, (3, 6), -1)]
    assert pair_edited(plain, others, "there") == 2
    assert plain[0].edited is None and plain[1].edited is others[0] and plain[2].edited is others[1]
    with pytest.raises(ValueError, match="there holds no episode with the seed"):
        pair_edited([one("real", 0, (0, 0), 1)], others, "there")


@pytest.mark.parametrize("obs", ["symbolic_onehot", "symbolic"])
def test_symbols_are_drawn_and_their_slopes_lie_on_them(obs):
    from torchmem.envs.make import make_env

    world = make_env("minigrid_memory", obs=obs, size=7)
    shown, _ = world.reset(seed=4)
    spec = env_spec("minigrid_memory", obs=obs, size=7)
    side = view_side(spec)
    picture = pictures(spec, {key: value[None] for key, value in shown.items()})
    rgb = make_env("minigrid_memory", obs="rgb", size=7)
    drawn = rgb.reset(seed=4)[0]["image"]
    nearest = np.arange(64) * picture.shape[1] // 64
    assert np.array_equal(picture[0][nearest][:, nearest], drawn)
    # a slope of the symbol in column 0, row 2 alone lies there and nowhere else; that of absent symbols counts nothing
    slopes = {}
    if obs == "symbolic":
        for key, classes in (("object", 11), ("colour", 6), ("state", 3)):
            slopes[f"total.obs.{key}"] = np.zeros((1, 1, 1, side, side, classes))
        there = int(shown["object"][0, 2])
        slopes["total.obs.object"][..., 0, 2, there] = 5
        slopes["total.obs.object"][..., 1, 1, (int(shown["object"][1, 1]) + 1) % 11] = 9
    else:
        grad = np.zeros((side, side, 20))
        grad[0, 2, :11] = 5
        grad[1, 1, :11] = 9 * (shown["view"].reshape(side, side, 20)[1, 1, :11] == 0)
        slopes["total.obs.view"] = grad.reshape(1, 1, 1, -1)
    assert ways_shown(spec, slopes) == ["total"]
    found = overlay(spec, slopes, "total", [{key: value[None] for key, value in shown.items()}])
    want = np.zeros((side, side))
    want[2, 0] = 5
    np.testing.assert_allclose(found[0, 0, 0], want)
    assert action_names(spec) == ("turn left", "turn right", "forward")


def test_the_command_makes_a_page_and_refuses(made, tmp_path, capsys):
    words = ["panel", str(made.agent), "--recording", str(made.rec.path), "--allow"]
    out = ["--out", str(tmp_path / "a.html")]
    directions = ["--directions", str(made.folders["directions"])]
    assert cli.main([*words, *out, *directions, "--clamp", "0=1", "--samples", "2", "--episodes", "2"]) == 0
    assert "2 real, 2 simulated samples" in capsys.readouterr().out
    assert read(tmp_path / "a.html")["meta"]["edit"] == "0 at 1"
    for more, told in (
        ([], "say where to"),
        ([*out, "--clamp", "0=1"], "give --directions"),
        ([*out, "--saliency", str(made.folders["dynamics"])], "not what torchmem saliency writes"),
        ([*out, "--clusters", str(made.folders["clusters"]), "--simulated", str(made.home / "edited"), "--recording",
          str(made.home / "edited")], "which is not shown here"),
        ([*out, "--samples", "0"], "at least 1"),
        ([*out, "--simulated", str(made.sim.path), *directions, "--clamp", "0=1"], "need a simulator to act in"),
    ):  # fmt: skip
        assert cli.main([*words, *more]) == 2, more
        assert told in capsys.readouterr().err, more
    assert cli.main(["panel", str(tmp_path / "nothing.json"), *out]) == 2
    assert "is no panel_data.json" in capsys.readouterr().err
