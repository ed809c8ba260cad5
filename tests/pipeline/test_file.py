"""What is wrong with a pipeline file is told before anything runs, with its line and the nearest right name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pipeline.planted import read
from torchmem.cli import VERBS, fault, main
from torchmem.pipeline.file import Verbs, read_pipeline
from torchmem.pipeline.stage import PipelineError, Stage, option_words, render

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("stage: {}\n", 1, "unknown key 'stage'; did you mean 'stages'?"),
        ("code: non\nstages: {a: 'record ${out}'}", 1, "code: 'non' is not one of source, git, ignore"),
        ("stages:\n  a:\n    comand: record ${out}\n", 3, "unknown key 'comand'; did you mean 'command'?"),
        ("stages:\n  a: recrod ${out}\n", 2, "no command 'recrod'; did you mean 'record'?"),
        ("stages:\n  a: record x\n", 2, "put ${out} into its command or options"),
        ("stages:\n  rec: record ${out}\n  b: probe ${ret} ${out}\n", 3, "no stage or input 'ret'; did you"),
        ("seeds: {one: 1}\nstages: {a: 'record ${out} ${seeds.on}'}", 2, "no seed 'on'; did you mean 'one'?"),
        ("seeds:\n  one: x\nstages: {a: 'record ${out}'}", 2, "seed one must be a whole number"),
        ("inputs:\n  table: nowhere.csv\nstages: {a: 'record ${out}'}", 2, "nowhere.csv does not exist"),
        ("stages:\n  a: record ${a/x} ${out}\n", 2, "cannot read its own output"),
        ("stages:\n  b: record ${out}\n  a: probe ${b/../c} ${out}\n", 3, "leaves the folder of b"),
        ("stages:\n  z: record ${out}\n  a: probe ${b} ${out}\n  b: probe ${a} ${out}\n", 3, "a needs b needs a"),
        ("stages:\n  out: record ${out}\n", 2, "'out' cannot be a name"),
        ("stages:\n  a:\n    command: record ${out}\n    options: {deep: {er: 1}}\n", 4, "option deep: give a value"),
        ("stages:\n  a:\n    command: record ${out}\n    slurm: {time: 3.5}\n", 4, "quote times"),
        ("stages:\n  a: record '${out}\n", 2, "No closing quotation"),
        ("stages:\n  a: record ${out}\n  a: probe ${out}\n", 3, "duplicate key"),
        ("stages: [\n", 2, ""),
        ("", 1, "needs stages"),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path, text, line, told):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        read(path)
    assert re.match(rf"{re.escape(str(path))}:{line}:\d+: ", str(caught.value)), caught.value
    assert told in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("stages:\n  a: recrod ${out}\n  b: probe ${c} ${out}\n")
    with pytest.raises(PipelineError) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 2


def test_nothing_that_yaml_could_run_is_read(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("stages: !!python/object/apply:os.system ['touch " + str(tmp_path / "ran") + "']\n")
    with pytest.raises(PipelineError):
        read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("record ${train} --out ${out} --epsiodes 3", "unrecognized arguments: --epsiodes 3; did you mean --episodes?"),
        ("record ${train} --out ${out} --episodes many", "invalid int value: 'many'"),
        ("train agent=ppo agent.lrr=1 logdir=${out}", "did you mean 'agent.lr'?"),
    ],
)
def test_words_of_a_verb_are_checked_by_the_verb_itself(tmp_path, capsys, stage, told):
    path = tmp_path / "p.yaml"
    path.write_text(f"folder: {tmp_path}/run\nstages:\n  train: train agent=ppo logdir=${{out}}\n  x: {stage}\n")
    assert main(["pipeline", str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{path}:4:3: stage x: " in err and told in err
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_right(path):
    """Every word of every stage, as the verbs of today read it."""
    assert read_pipeline(path, Verbs(tuple(VERBS), fault)).stages


def test_right_words_have_no_fault():
    assert fault(["record", "x", "--out", "y", "--sites", "memory", "core.*"]) is None
    assert fault(["train", "agent=ppo", "seed=1"]) is None


def test_options_become_words():
    given = {"sites": ["a", "b"], "by": "x y", "greedy": True, "json": False, "max_lag": 3}
    assert option_words(given, train=False) == ["--sites", "a", "b", "--by", "x y", "--greedy", "--max-lag", "3"]
    train = {"agent": {"lr": 1e-3, "name": None}, "log.sinks": ["a"], "env.vary": True}
    words = ["agent.lr=0.001", "agent.name=null", "log.sinks=[a]", "env.vary=true"]
    assert option_words(train, train=True) == words


def test_names_are_replaced_within_one_word():
    stage = Stage("s", ("bash", "-c", "echo $${HOME} ${in put}", "${out}/x"))
    assert stage.words(lambda name: f"<{name} 'a b'>")[2:] == ["echo ${HOME} <in put 'a b'>", "<out 'a b'>/x"]
    assert render("$$ $x ${}", lambda name: f"[{name}]") == "$$ $x []"
