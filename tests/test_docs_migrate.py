"""docs/migrate_irl.md promises nothing that is not there: verbs, flags, keys and presets."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from functools import cache
from pathlib import Path

import pytest

from torchmem import cli
from torchmem.training.config import compose

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "migrate_irl.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.S))
COMMANDS = [words for words in map(str.split, CODE) if words[0] == "torchmem"]
KEY = re.compile(r"^[a-z_]+(\.[a-z_]+)*=\S+$")
TWO = ("simulator",)  # verbs that have verbs


@cache
def help_of(verb: tuple[str, ...]) -> set[str]:
    """All flags of a verb."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
        cli.main([*verb, "--help"])
    assert left.value.code == 0, verb
    return set(re.findall(r"--[a-z][a-z-]*", out.getvalue()))


def test_every_command_exists_with_every_flag():
    assert len(COMMANDS) > 30
    verbs = set()
    for words in COMMANDS:
        if words[1] == "train":
            continue
        verb = tuple(words[1 : 3 if words[1] in TWO else 2])
        unknown = [word for word in words if word.startswith("--") and word not in help_of(verb)]
        assert not unknown, f"{' '.join(words)}: {unknown}"
        verbs.add(verb)
    assert {("simulate",), ("panel",), ("intervene",), ("simulator", "report")} <= verbs
    known = set.union(*map(help_of, verbs))
    loose = [word for code in CODE if code.startswith("--") for word in code.split() if word.startswith("--")]
    assert [flag for flag in loose if flag not in known] == ["--model_file"], "the old program's own"


def names_of(value: object, before: str = "") -> set[str]:
    """Dotted names of all fields of a configuration."""
    if not dataclasses.is_dataclass(value):
        return {before}
    parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    return set().union(*(names_of(part, f"{before}.{name}" if before else name) for name, part in parts))


def test_every_key_exists():
    known = set().union(*(names_of(compose([f"preset={preset}"])) for preset in ("hard_rec", "irl_rssm")))
    keys = {word.partition("=")[0] for code in CODE for word in code.split() if KEY.match(word)} - {"preset"}
    assert len(keys) > 35 and "agent.clipp_norm" not in known
    assert keys <= known, keys - known
    presets = {word for code in CODE for word in code.split() if word.startswith("preset=")}
    assert presets == {"preset=hard_rec", "preset=hard_rec_small"}
    compose(["preset=hard_rec_small", "agent.legacy_reset=true"])


def test_the_python_runs(tmp_path, monkeypatch):
    import numpy as np

    from tests.analysis.recordings import Memory
    from tests.models.simulator import tiny
    from torchmem.analysis.find_directions import find_directions
    from torchmem.models.checkpoint import save_agent

    monkeypatch.chdir(tmp_path)
    save_agent(tiny.ppo(), "RUN")
    rows = np.random.default_rng(0).normal(size=(60, 6))
    find_directions(Memory({"memory": rows}, {}, np.arange(60) // 6), count=4, draws=0).save("DIRS")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names: dict = {}
    exec(block, names)
    assert names["loadings"].shape == (3, 4)


def test_the_values_beside_the_old_ones_are_those_of_the_presets():
    sections = re.split(r"^(?:Of|## )", PAGE, flags=re.M)
    for name, preset in (("`hard-rec`", "hard_rec"), ("the simulator", "irl_rssm")):
        text = next(part for part in sections if part.strip().startswith(name))
        words = [w for w in re.findall(r"`([^`\n]+)`", text) if KEY.match(w) and w != "agent.bottleneck=vae"]
        assert len(words) > 10 and compose([f"preset={preset}", *words]) == compose([f"preset={preset}"])
