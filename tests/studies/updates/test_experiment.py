"""The five-phase experiment by its command: one folder, resumable, pooled over seeds, compared; plans are checked."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from torchmem.cli import main
from torchmem.result import load_result
from torchmem.studies.updates.experiment import load_experiment
from torchmem.studies.updates.plan import PLANS, UpdatePlan, plan_of, small
from torchmem.surgery.weight_delta import WeightDelta
from torchmem.training.config import compose


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = small(PLANS["lunar_lander"]).to_json() | {"pre_steps": 128, "steps": 64, "salvage": 64, "scales": [-1, 1],
                                                  "episodes": 4}  # fmt: skip
    plan["base"] += ["env.max_steps=30", "agent.head_units=8", "envs=4", "batch=4"]
    file.write_text(json.dumps(plan))
    return file


@pytest.fixture(scope="module")
def folder(plan_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "fuel"
    assert main(["updates", "run", "--plan", str(plan_file), "--seeds", "0", "1", "--out", str(out)]) == 0
    return out


def test_one_folder_holds_everything(folder):
    result = load_experiment(folder)
    assert result.seeds == (0, 1) and result.tables["sub"]["fuel"].shape == (2, 4)
    assert result.steps == {"pre": 128, "branch": 64, "salvage": 64}
    page = (folder / "report.html").read_text()
    for text in ("Does the update hold what was changed?", "Salvage", "Module by module", "Where the update lies",
                 "change taken away - null taken away", "p = 0.500"):  # fmt: skip
        assert text in page
    assert page.count("data:image/png") == 7 and "src='http" not in page
    rows = list(csv.DictReader((folder / "tables.csv").read_text().splitlines()))
    mean = next(r for r in rows if (r["condition"], r["measure"], r["seed"]) == ("sub", "fuel", "1"))
    assert float(mean["mean"]) == pytest.approx(result.tables["sub"]["fuel"][1].mean(), rel=1e-4)
    assert {"change x -1", "null x 1", "init"} <= {r["condition"] for r in rows}
    assert load_result(folder / "effects").estimate.shape[0] > 20
    delta = WeightDelta.load(folder / "seed-0" / "deltas" / "change.safetensors", folder / "seed-0" / "pre" / "agent")
    after = delta.apply(dict(load_agent_parameters(folder / "seed-0" / "pre")))
    assert all((after[n] == p).all() for n, p in load_agent_parameters(folder / "seed-0" / "post"))


def load_agent_parameters(place):
    from torchmem.models.checkpoint import load

    return load(place / "agent").named_parameters()


def test_it_goes_on_where_it_stopped(folder, plan_file, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    shutil.rmtree(half / "seed-1" / "results")
    shutil.rmtree(half / "seed-1" / "salvage-fresh")
    (half / "seed-1" / "tables" / "salvage_fresh.npz").unlink()
    kept = (half / "seed-1" / "post" / "agent" / "agent.safetensors").stat().st_mtime_ns
    assert main(["updates", "run", "--plan", str(plan_file), "--seeds", "0", "1", "--out", str(half)]) == 0
    again, first = load_experiment(half), load_experiment(folder)
    assert (half / "seed-1" / "post" / "agent" / "agent.safetensors").stat().st_mtime_ns == kept
    for name, table in first.tables.items():
        for measure, values in table.items():
            assert (again.tables[name][measure] == values).all() or values.shape != (2, 4), name


def test_another_plan_does_not_go_on_in_it(folder, capsys):
    assert main(["updates", "run", "--plan", "lunar_lander", "--out", str(folder)]) == 2
    assert "holds another study" in capsys.readouterr().err


def test_compare(folder, tmp_path, capsys):
    assert main(["updates", "compare", str(folder), str(folder), "--out", str(tmp_path / "both")]) == 0
    found = load_result(tmp_path / "both")
    assert found.estimate.shape == (2, 5) and (found.estimate[0] == found.estimate[1]).all()
    assert "change taken away - null taken away" in capsys.readouterr().out


def test_an_empty_folder_has_no_report(tmp_path, capsys):
    assert main(["updates", "report", str(tmp_path)]) == 2
    assert "no finished seed" in capsys.readouterr().err


@pytest.mark.parametrize("name", PLANS)
def test_plans_compose(name):
    plan = PLANS[name]
    for words in (plan.base, (*plan.base, *plan.after, *plan.change), (*plan.base, *plan.test), small(plan).base):
        compose([f"{k}={v}" for k, v in dict(w.split("=", 1) for w in words).items()])
    assert UpdatePlan.from_json(plan.to_json()) == plan and plan_of(name) is plan


def test_plans_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no plan 'fuel'"):
        plan_of("fuel")
    with pytest.raises(ValueError, match="has no chnage"):
        UpdatePlan.from_json({"base": [], "change": [], "chnage": []})
    with pytest.raises(ValueError, match="needs change"):
        UpdatePlan.from_json({"base": []})
