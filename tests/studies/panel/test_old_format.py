"""The old panel's files: written as the specification lists them, and read back into a page."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.studies.panel.conftest import AT, SAMPLES, STEPS, K
from tests.studies.panel.test_panel import read, unpack
from torchmem import cli


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    file = tmp_path_factory.mktemp("old") / "panel_data.json"
    words = ["panel", str(made.agent), "--recording", str(made.rec.path), "--simulated", str(made.sim.path), "--allow",
             "--directions", str(made.folders["directions"]), "--saliency", str(made.folders["saliency"]),
             "--clusters", str(made.folders["clusters"]), "--export-old", str(file)]  # fmt: skip
    assert cli.main(words) == 0
    return file


def test_its_files_are_those_of_the_specification(made, exported):
    data = json.loads(exported.read_text())
    assert set(data) == {"base_hx_loadings", "samples", "clusters"}
    assert np.array(data["base_hx_loadings"]).shape == (SAMPLES * STEPS, K) and len(data["samples"]) == SAMPLES
    one = data["samples"]["sample_00002"]
    names = {"saliency_step", "actions", "hx_loadings", "grad_hx_value_loadings", "grad_hx_prob_1_loadings"}
    assert set(one) == names | {f"grad_hx_hx_direction_{k}_loadings" for k in range(K)}
    rows = made.sim.rows(2)
    assert one["actions"] == made.sim.covariates["action"][rows].tolist() and one["saliency_step"] == AT
    y = made.directions.scores(made.sim.activations["memory"][rows])
    np.testing.assert_allclose(one["hx_loadings"], y, rtol=1e-3, atol=1e-5)
    grad = made.saliency.slopes["total.directions"][0, 2]
    np.testing.assert_allclose(one["grad_hx_value_loadings"], grad, rtol=1e-3, atol=1e-12)
    assert {name for names in data["clusters"].values() for name in names} <= set(data["samples"])
    extrema = json.loads(exported.with_name("extrema.json").read_text())
    assert set(extrema) == {"any", "saliency_step"} and set(extrema["any"]) == {"high", "middle", "low"}
    top = made.directions.scores(made.sim.activations["memory"][:])[:, 1].argmax() // STEPS
    assert f"sample_{top:05d}" in extrema["any"]["high"]["1"]
    strip = np.asarray(Image.open(exported.parent / "sample_00002" / "obs.png"))
    assert np.array_equal(strip[:, 64:128], made.sim.covariates["obs.image"][rows][1])
    assert (exported.parent / "sample_00002" / "sal_value.png").is_file()


def test_it_is_read_back(made, exported, tmp_path):
    assert cli.main(["panel", str(exported), "--out", str(tmp_path / "old.html")]) == 0
    found = read(tmp_path / "old.html")
    assert not found["meta"]["has"]["value"] and "value" not in found["table"]
    y = made.directions.scores(made.sim.activations["memory"][:])
    np.testing.assert_allclose(unpack(found["table"]["score.2"]), y[:, 2], atol=1e-3 * np.abs(y).max())
    assert np.array_equal(unpack(found["blob1"]["frames"]), made.sim.covariates["obs.image"][made.sim.rows(1)])
    assert unpack(found["blob1"]["saliency.total.0"]).shape == (AT + 1, 64, 64, 3)
    assert found["meta"]["slopes"]["scalars"][:2] == ["value", "prob_1"]


def test_what_does_not_fit_is_told(exported, tmp_path, capsys):
    data = json.loads(exported.read_text())
    data["samples"]["sample_00001"]["actions"] = [0]
    (tmp_path / "bad.json").write_text(json.dumps(data))
    assert cli.main(["panel", str(tmp_path / "bad.json"), "--out", str(tmp_path / "x.html")]) == 2
    assert "sample_00001 has hx_loadings" in capsys.readouterr().err
    (tmp_path / "none.json").write_text("{}")
    assert cli.main(["panel", str(tmp_path / "none.json"), "--out", str(tmp_path / "x.html")]) == 2
    assert "is no panel_data.json" in capsys.readouterr().err
