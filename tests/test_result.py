"""Results come back as they were, never half written, and know where they came from."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from torchmem.errors import TorchmemError
from torchmem.report import write_report
from torchmem.result import Provenance, Result, load_result


@dataclasses.dataclass(frozen=True)
class CurveResult(Result):
    score: float
    curve: np.ndarray
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    file: Any = None  # a field named like an argument of numpy.savez

    def summary(self) -> str:
        return f"score {self.score:.2f}"

    def plot(self, ax=None):
        ax = self.axes(ax)
        ax.plot(self.curve)
        return ax


def made(**changes: Any) -> CurveResult:
    fields: dict[str, Any] = {
        "score": float("nan"),
        "curve": np.array([1.0, np.nan, np.inf], np.float32),
        "parts": {
            "names": np.array(["a", "bé"]), "a/b": np.arange(3), "a_b": np.arange(4), "shape": (2, (3,)),
            "list": [1, "x"],
            "by_layer": {3: np.zeros((2, 0)), 4: -np.inf}, "$array": "text", "none": None, "count": np.int64(3),
        },
        "file": np.array(True),
        "provenance": Provenance.here(seeds={"probe": 3}, edits=("ablate x", {"site": "memory"}), checkpoint="runs/x"),
    }  # fmt: skip
    return CurveResult(**{**fields, **changes})


def test_a_saved_result_comes_back_equal_and_of_its_types(tmp_path):
    result = made()
    path = result.save(tmp_path / "r")
    back = load_result(path)
    assert back == result and isinstance(back, CurveResult)
    assert back.curve.dtype == np.float32 and back.parts["shape"] == (2, (3,)) and back.parts["list"] == [1, "x"]
    assert isinstance(back.parts["count"], np.int64) and set(back.parts["by_layer"]) == {3, 4}
    assert np.array_equal(back.parts["a/b"], np.arange(3)) and np.array_equal(back.parts["a_b"], np.arange(4))
    assert back.provenance.edits == ("ablate x", {"site": "memory"}) and back.provenance.seeds == {"probe": 3}
    assert {p.name for p in path.iterdir()} == {"result.json", "arrays.npz", "figure.png", "provenance.jsonl"}
    assert [p.name for p in tmp_path.iterdir()] == ["r"]
    assert json.loads((path / "result.json").read_text())["summary"] == "score nan"


@pytest.mark.parametrize(
    "change",
    [
        {"score": 1.0},
        {"curve": np.array([1.0, np.nan, np.inf])},  # float64
        {"curve": np.array([1.0, 0.0, np.inf], np.float32)},
        {"parts": {}},
        {"provenance": Provenance("0")},
    ],
)
def test_results_differ_where_a_field_does(change):
    result = made()
    assert result != dataclasses.replace(result, **change)
    assert hash(result) == hash(dataclasses.replace(result))


def test_nothing_is_overwritten_unasked(tmp_path):
    made(score=1.0).save(tmp_path / "r")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        made(score=2.0).save(tmp_path / "r")
    newer = made(score=2.0)
    newer.save(tmp_path / "r", overwrite=True)
    assert load_result(tmp_path / "r") == newer and [p.name for p in tmp_path.iterdir()] == ["r"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="not a result"):
        newer.save(tmp_path / "mine", overwrite=True)


@pytest.mark.parametrize(
    ("value", "word"),
    [(object(), "parts.x is a object"), (np.array([None]), "parts.x is an array of Python objects")],
)
def test_what_cannot_be_kept_is_refused_by_name_and_leaves_nothing(tmp_path, value, word):
    with pytest.raises(TorchmemError, match=word):
        made(parts={"x": value}).save(tmp_path / "r")
    with pytest.raises(TorchmemError, match="provenance"):
        made(provenance=Provenance.here(config={"x": object()})).save(tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_a_damaged_result_is_refused(tmp_path):
    path = made().save(tmp_path / "r")
    with pytest.raises(TorchmemError, match="not a saved result"):
        load_result(tmp_path)
    card = json.loads((path / "result.json").read_text())
    (path / "result.json").write_text(json.dumps(card | {"type": "somewhere_else:Thing"}))
    with pytest.raises(TorchmemError, match="import somewhere_else first"):
        load_result(path)
    (path / "result.json").write_text(json.dumps(card))
    (path / "arrays.npz").write_bytes((path / "arrays.npz").read_bytes()[:-1])
    with pytest.raises(TorchmemError, match="truncated"):
        load_result(path)


def test_drawing_makes_axes_only_where_none_are_given():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    assert made().plot(ax) is ax
    drawn = made().plot()
    assert drawn is not ax and tuple(drawn.figure.get_size_inches()) == CurveResult.figure_size
    plt.close("all")


def test_provenance_tells_what_the_process_knows():
    first = Provenance.here(checkpoint="runs/x", weights="ab", seeds={"record": 1}, edits=("cut",), command="old")
    assert first.torchmem and first.date.endswith("+00:00") and first.command == "old"
    again = first.again(seeds={"record": 1, "probe": 2})
    assert (again.checkpoint, again.weights, again.edits) == ("runs/x", "ab", ("cut",))
    assert again.command != "old" and again.seeds == {"record": 1, "probe": 2}
    assert Provenance.from_json(json.loads(json.dumps(again.to_json()))) == again


def test_a_report_is_one_page_with_every_number_and_figure(tmp_path):
    two = {"first": made(), "second": made()}
    path = write_report(tmp_path / "new" / "report.html", "Cues & <memory>", two, "one\n\ntwo")
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 2 and page.count("<h2>") == 2 and page.count("<p>") == 2
    assert "Cues &amp; &lt;memory&gt;" in page and "http" not in page, "nothing is fetched from elsewhere"
    assert made().summary() in page and made().provenance.torchmem in page


def test_a_figure_drawn_twice_is_the_same_file(tmp_path):
    """Otherwise everything that a pipeline makes from figures would be made anew."""
    from matplotlib.figure import Figure

    from torchmem.result import save_figures

    drawn = []
    for place in ("one", "two"):
        figure = Figure()
        figure.subplots().plot([0, 1], label="x", marker="o", clip_on=True)
        drawn.append(save_figures({"f": figure}, tmp_path / place, ()))
    for one, two in zip(*drawn, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    assert "<dc:date>" not in drawn[0][1].read_text()
