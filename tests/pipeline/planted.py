"""Pipelines of small planted commands: each stage writes one text and a line in a ledger, which counts its attempts."""

from __future__ import annotations

from pathlib import Path

from torchmem.pipeline.file import Pipeline, Verbs, read_pipeline
from torchmem.pipeline.run import Runner

VERBS = Verbs(("train", "record", "probe"), lambda words: None)
# python -c STAGE out ledger name text [input ...]: the output is the inputs, then the text
STAGE = """
import pathlib, sys
out, ledger, name, text, *inputs = sys.argv[1:]
with open(ledger, "a") as file:
    file.write(name + "\\n")
read = "".join((pathlib.Path(p) / "text").read_text() for p in inputs)
(pathlib.Path(out) / "text").write_text(read + text)
"""
CHAIN = """
seeds: {{one: 3}}
cache: {cache}
folder: {folder}
stages:
  first: [python, {script}, "${{out}}", {ledger}, first, "a${{seeds.one}}"]
  second:
    command: [python, {script}, "${{out}}", {ledger}, second, {second}, "${{first}}"]
  third: [python, {script}, "${{out}}", {ledger}, third, c, "${{second}}"]
  beside: [python, {script}, "${{out}}", {ledger}, beside, {beside}]
"""


def chain(tmp_path: Path, *, second: str = "b", beside: str = "d", text: str = CHAIN, **told) -> Path:
    """A file with the stages first -> second -> third, and beside. Its ledger is tmp_path/ledger."""
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    names = {"script": script, "ledger": tmp_path / "ledger", "second": second, "beside": beside}
    path = tmp_path / told.pop("name", "chain.yaml")
    places = {"cache": tmp_path / "cache", "folder": tmp_path / "run", **told}
    path.write_text(text.format(**names, **places))
    return path


def read(path: Path, **told) -> Pipeline:
    return read_pipeline(path, VERBS, **told)


def run(path: Path, only=(), force=(), keep_going: bool = False, **told) -> dict[str, str]:
    return Runner(read(path, **told), only, force, keep_going).run()


def ledger(tmp_path: Path) -> list[str]:
    """Which stages ran since this was last asked, in order."""
    file = tmp_path / "ledger"
    names = file.read_text().split() if file.exists() else []
    file.write_text("")
    return names


def text(tmp_path: Path, stage: str) -> str:
    return (tmp_path / "run" / stage / "text").read_text()
