"""The rules of CONTRIBUTING.md that a program can check. tests/house.py reads the files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import house

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "torchmem"
STDLIB = frozenset(sys.stdlib_module_names)
LINES = 400


def dotted(path: Path) -> str:
    """torchmem/envs/__init__.py -> "envs.__init__"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def listed(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_rooms_import_only_what_they_may():
    listed([f for p in house.python_files(PACKAGE) for f in house.layer_faults(p.read_text(), dotted(p), STDLIB)])


def test_package_keeps_its_habits():
    listed([f for p in house.python_files(PACKAGE) for f in house.habit_faults(p.read_text(), dotted(p))])


def test_files_are_small_and_have_one_idea():
    places = [PACKAGE, ROOT / "tests", ROOT / "examples", ROOT / "benchmarks", ROOT / "results", ROOT / "scripts"]
    files = [path for place in places if place.exists() for path in house.python_files(place)]
    long = [f"{p.relative_to(ROOT)}: {n} lines" for p in files if (n := len(p.read_text().splitlines())) > LINES]
    vague = [f"{p.relative_to(ROOT)}: name its idea" for p in files if p.stem in ("utils", "util", "helpers", "misc")]
    listed(long + vague)


def test_each_analysis_file_asks_one_question():
    def public(path: Path) -> list[str]:
        body = ast.parse(path.read_text()).body
        return [node.name for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]

    shared = ("__init__", "style", "nulls")
    # a leading underscore marks a part of some question
    files = [p for p in house.python_files(PACKAGE / "analysis") if p.stem not in shared and p.stem[0] != "_"]
    listed([f"analysis/{p.name}: {names}" for p in files if len(names := public(p)) != 1])


def tracked() -> list[Path]:
    """Text files of the repository, or of the folder where git is not at hand (an unpacked archive)."""
    endings = {".py", ".md", ".toml", ".sh", ".yaml", ".yml", ".txt", ".cfg", ".json"}
    answer = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        files = [p for p in ROOT.rglob("*") if ".venv" not in p.parts and "runs" not in p.parts]
    else:
        files = [ROOT / line for line in answer.stdout.splitlines()]
    return [p for p in files if p.is_file() and (p.suffix in endings or p.name in ("Makefile", "run"))]


def test_no_path_of_a_developers_machine():
    # written so that this file does not find itself
    own = re.compile("|".join("/" + place for place in ("work/", "root/", "home/[a-z]+/", "opt/pypi", "opt/wheels")))
    faults = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if own.search(line):
                faults.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    listed(faults)


PAGES = ["README.md", "CONTRIBUTING.md", "docs/data_path.md", "docs/shapes.md", "docs/gotchas.md", "docs/verify.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_that_exist(page: str):
    names = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|txt|sh))`", (ROOT / page).read_text())
    places = [ROOT, PACKAGE]
    listed([f"{page}: {name}" for name in names if not any((place / name).exists() for place in places)])


def test_makefile_and_ci_run_the_same():
    ci = (ROOT / ".ci" / "run").read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {"setup", "train", "test", "check", "doctor"} <= set(targets)
    assert set(re.findall(r"make (?:--\S+ )*([a-z]+)$", ci, re.M)) <= set(targets)


def test_every_dependency_has_an_exact_version():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [name for group in project["optional-dependencies"].values() for name in group]
    plain = re.compile(r"[-_.]+")
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    listed([f"constraints.txt: {line} is not exact" for line in pins if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)])
    pinned = {plain.sub("-", line.split("==")[0]).lower() for line in pins}
    names = {plain.sub("-", re.match(r"[\w.-]+", item)[0]).lower() for item in asked}
    assert not names - pinned, f"no pin in constraints.txt for {sorted(names - pinned)}"


# --- the reader itself finds what it should --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("models.dreamer.agent", "from torchmem.training import replay"),
        ("models.dreamer.agent", "from ...envs.protocol import World"),
        ("models.layers", "import lightning"),
        ("models.layers", "import torchrl.data"),
        ("models.layers", "import ruamel.yaml"),
        ("models.layers", "def f():\n    from torchmem.envs import make"),
        ("envs.dummy", "import torchmem.models"),
        ("envs.dummy", "from torchmem import training"),
        ("envs.dummy", "import hydra"),
        ("envs.maze", "import gym"),
        ("training.loop", "from torchmem.surgery.trace import load"),
        ("training.replay", "import pickle"),
        ("training.plot", "import matplotlib.pyplot as plt"),
        ("surgery.trace", "from torchmem.models.dreamer.agent import Dreamer"),
        ("surgery.trace", "from torchmem.studies import circuits"),
        ("analysis.tuning", "from torchmem.models.protocol import Agent"),
        ("types", "from torchmem.files import atomic_write"),
        ("newroom.thing", "import torchmem.types"),
    ],
)
def test_reader_refuses_a_wrong_import(name: str, source: str):
    assert house.layer_faults(source, name, STDLIB)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("models.dreamer.agent", "from torchmem.types import Site\nfrom ..layers import Linear\nimport torch, math"),
        ("models.returns", "from torchrl.objectives.value.functional import vec_td_lambda_return_estimate"),
        ("models.importers.dreamerv3", "import pickle\nfrom ruamel.yaml import YAML"),
        ("envs.dummy", "from .protocol import World\nimport numpy"),
        ("training.loop", "import lightning\nfrom torchmem.envs.vector import VectorEnv"),
        ("training.plot", "def plot():\n    import matplotlib.pyplot as plt"),
        ("training.plot", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes"),
        ("surgery.trace", "import nnsight\nfrom torchmem.models.protocol import Agent"),
    ],
)
def test_reader_lets_a_right_import_pass(name: str, source: str):
    assert house.layer_faults(source, name, STDLIB) == []


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "breakpoint()",
        "import pdb",
        "from torch import *",
        "self.device = 1",
        "raise NotImplementedError",
        "# TO" + "DO later",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
        "YAML(typ='unsafe')",
        "eval('1')",
    ],
)
def test_reader_finds_bad_habits(source: str):
    assert house.habit_faults(source, "x")


def test_reader_lets_good_habits_pass():
    good = "import torch\ntorch.load(path, weights_only=True)\nnp.load(path)\nmodel.eval()\nx = self.weight.device\n"
    assert house.habit_faults(good, "x") == []
