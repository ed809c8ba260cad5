"""What runs again and what does not: keys of commands, options, inputs, seeds and code; altered and deleted outputs."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.pipeline.planted import CHAIN, chain, ledger, read, run, text
from torchmem.artefact import content_hash
from torchmem.pipeline import key
from torchmem.pipeline.plan import plan
from torchmem.pipeline.stage import PipelineError

ALL = ["first", "second", "third", "beside"]


def why(path, **told) -> dict[str, tuple[str, str]]:
    return {v.stage.name: (v.state, v.why) for v in plan(read(path), **told)}


def test_a_second_run_does_nothing(tmp_path):
    path = chain(tmp_path)
    assert run(path) == dict.fromkeys(ALL, "done")
    assert ledger(tmp_path) == ALL and text(tmp_path, "third") == "a3bc"
    assert run(path) == dict.fromkeys(ALL, "cached")
    assert ledger(tmp_path) == []


def test_a_changed_word_runs_just_what_depends_on_it(tmp_path):
    run(chain(tmp_path))
    ledger(tmp_path)
    changed = chain(tmp_path, second="B")
    told = why(changed)
    assert told["first"][0] == told["beside"][0] == "cached"
    assert told["second"][0] == "run" and "command: " in told["second"][1] and " B " in told["second"][1]
    assert told["third"][0] == "waits" and "second" in told["third"][1]
    run(changed)
    assert ledger(tmp_path) == ["second", "third"] and text(tmp_path, "third") == "a3Bc"
    assert set(run(chain(tmp_path)).values()) == {"cached"}, "what was made before is still there"
    assert text(tmp_path, "third") == "a3bc"


def test_a_stage_that_makes_the_same_anew_stops_the_wave(tmp_path):
    path = chain(tmp_path)
    run(path)
    ledger(tmp_path)
    assert run(path, force=["first"])["second"] == "cached"
    assert ledger(tmp_path) == ["first"]


def test_a_seed_counts_where_it_is_named(tmp_path):
    path = chain(tmp_path)
    run(path)
    ledger(tmp_path)
    run(path, seeds={"one": 4})
    assert ledger(tmp_path) == ["first", "second", "third"] and text(tmp_path, "third") == "a4bc"


OPTIONS = """
folder: {folder}
inputs: {{table: table.txt}}
stages:
  only:
    command: [python, {script}, "${{out}}", {ledger}, only, x]
    options: {options}
  reads: bash -c 'cp $0 $1/text' ${{table}} ${{out}}
"""


def test_the_reason_names_the_option_and_the_input(tmp_path):
    (tmp_path / "table.txt").write_text("1")
    run(chain(tmp_path, text=OPTIONS, options="{}"))
    run(chain(tmp_path, text=OPTIONS, options="{}"))
    path = chain(tmp_path, text=OPTIONS, options="{size: 3}")
    assert why(path)["only"] == ("run", "option size: not there -> 3")
    (tmp_path / "table.txt").write_text("2")
    state, reason = why(path)["reads"]
    old, new = (content_hash_of(tmp_path, one)[:8] for one in "12")
    assert (state, reason) == ("run", f"input table: {old} -> {new}")


def content_hash_of(tmp_path, content: str) -> str:
    (tmp_path / "other").write_text(content)
    return content_hash(tmp_path / "other")


def test_code_counts_unless_it_is_ignored(tmp_path, monkeypatch):
    path = chain(tmp_path)
    places = {"cache": tmp_path / "c2", "folder": tmp_path / "r2"}
    loose = chain(tmp_path, text="code: ignore\n" + CHAIN, name="loose.yaml", **places)
    run(path)
    run(loose)
    monkeypatch.setattr(key, "source_hash", lambda: "f" * 64)
    state, reason = why(path)["first"]
    assert state == "run" and reason.startswith("code: torchmem") and reason.endswith("ffffffff")
    assert {state for state, _ in why(loose).values()} == {"cached"}
    record = json.loads((tmp_path / "r2" / "first" / "provenance.jsonl").read_text().splitlines()[-1])
    assert record["stage"]["parts"]["code"] == {"ignored": True} and record["commit"]


def test_git_state_can_be_the_code(tmp_path, monkeypatch):
    path = chain(tmp_path, text="code: git\n" + CHAIN)
    monkeypatch.setattr(key, "git_state", lambda: ("a" * 40, None))
    run(path)
    assert {s for s, _ in why(path).values()} == {"cached"}
    monkeypatch.setattr(key, "git_state", lambda: ("a" * 40, "d" * 64))
    assert why(path)["first"] == ("run", f"code: torchmem {key.__version__} aaaaaaaa -> torchmem {key.__version__} "
                                  "aaaaaaaa with changes dddddddd")  # fmt: skip


def test_an_altered_output_is_refused_and_a_deleted_one_made_again(tmp_path):
    path = chain(tmp_path)
    run(path)
    ledger(tmp_path)
    file = (tmp_path / "run" / "second" / "text").resolve()
    file.write_text("forged")
    with pytest.raises(PipelineError, match=r"second: .*text was changed .* --force second"):
        run(path)
    assert run(path, force=["second"])["third"] == "cached"
    shutil.rmtree(file.parent)
    assert why(path)["second"] == ("run", "its output was deleted")
    run(path)
    assert ledger(tmp_path) == ["second", "second"] and text(tmp_path, "third") == "a3bc"


def test_a_touched_file_is_read_and_found_the_same(tmp_path):
    path = chain(tmp_path)
    run(path)
    (tmp_path / "run" / "second" / "text").touch()
    assert why(path)["second"][0] == "cached"


def test_only_a_part_of_an_output_may_count(tmp_path):
    text = """
folder: {folder}
stages:
  two: bash -c 'mkdir $0/a; echo 1 > $0/a/x; echo {noise} > $0/b' ${{out}}
  part: bash -c 'cat $0/x > $1/y' ${{two/a}} ${{out}}
"""
    run(chain(tmp_path, text=text, noise=1))
    assert run(chain(tmp_path, text=text, noise=2)) == {"two": "done", "part": "cached"}
    with pytest.raises(PipelineError, match="has not written it"):
        run(chain(tmp_path, text=text.replace("two/a", "two/c"), noise=2))


def test_two_files_share_a_cache(tmp_path):
    run(chain(tmp_path))
    ledger(tmp_path)
    other = chain(tmp_path, beside="e", name="other.yaml", folder=tmp_path / "elsewhere")
    assert run(other) == {"first": "cached", "second": "cached", "third": "cached", "beside": "done"}
    manifest = json.loads((tmp_path / "elsewhere" / "manifest.json").read_text())
    assert manifest["stages"]["third"]["content"] == content_hash(tmp_path / "run" / "third")
    assert manifest["stages"]["third"]["state"] == "done"


def test_only_and_force_know_their_stages(tmp_path):
    path = chain(tmp_path)
    with pytest.raises(PipelineError, match="--only thrid: there is no such stage; did you mean 'third'"):
        run(path, only=["thrid"])
    with pytest.raises(PipelineError, match=r"--only third: it needs second, .*Add --only second"):
        run(path, only=["third"])
    assert ledger(tmp_path) == [], "refused before anything runs"
    assert run(path, only=["first"]) == {"first": "done"}
    assert run(path, only=["second"]) == {"first": "cached", "second": "done"}
    assert ledger(tmp_path) == ["first", "second"]
