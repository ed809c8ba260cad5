"""The hash of an artefact is of what it is, and its log only ever grows."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from torchmem.artefact import (
    ENVIRONMENT,
    ArtefactError,
    append_record,
    by_entry,
    combined,
    content_hash,
    file_hashes,
    last_record,
    read_records,
    unaltered,
)
from torchmem.provenance import Provenance, git_state


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def test_a_hash_is_of_names_and_contents(tmp_path):
    one = content_hash(folder(tmp_path / "one", a="1", deep__b="2"))
    assert one == content_hash(folder(tmp_path / "two", a="1", deep__b="2"))
    for other in ({"a": "1", "deep__b": "3"}, {"a": "1", "deep__c": "2"}, {"a": "1", "b": "2"}):
        assert one != content_hash(folder(tmp_path / json.dumps(other)[:20], **other))
    assert content_hash(tmp_path / "one" / "a") == content_hash(tmp_path / "two" / "a")
    hashes = file_hashes(tmp_path / "one")
    assert by_entry(hashes) == {name: content_hash(tmp_path / "one" / name) for name in ("a", "deep")}
    assert combined(hashes) == one
    with pytest.raises(ArtefactError, match="does not exist"):
        content_hash(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["provenance.jsonl", ".lock", "lock", "x.part", "deep__provenance.jsonl"])
def test_locks_logs_and_unfinished_files_do_not_count(tmp_path, name):
    before = content_hash(folder(tmp_path, a="1", deep__b="1"))
    assert content_hash(folder(tmp_path, **{name: "x"})) == before


def test_of_a_run_counts_the_agent_and_not_what_it_goes_on_with(tmp_path):
    agent = "ckpt__s__agent__agent.json"
    run = {"run.json": "1", "config.json": "{}", "metrics.jsonl": "x", "ckpt__latest": "s", agent: "{}"}
    before = content_hash(folder(tmp_path, **run))
    for free in ("run.json", "tb__events", "replay__rows", "ckpt__s__shared.json", "ckpt__s__rank0.safetensors"):
        assert content_hash(folder(tmp_path, **{free: "other"})) == before, free
    for counts in ("metrics.jsonl", agent, "config.json"):
        changed = content_hash(folder(tmp_path, **{counts: "other"}))
        assert changed != before, counts
        before = changed


def card(**told) -> str:
    origin = {"date": "2026", "command": "x", "commit": "c", "seeds": {"a": 1}, "caveats": [], **told}
    return json.dumps({"summary": "1", "provenance": origin})


def test_of_a_card_counts_what_it_says_and_not_when_it_was_written(tmp_path):
    before = content_hash(folder(tmp_path, **{"result.json": card()}))
    for free in ({"date": "2027"}, {"command": "y"}, {"device": "cuda"}, {"checkpoint": "/elsewhere"}):
        assert content_hash(folder(tmp_path, **{"result.json": card(**free)})) == before
    for counts in ({"seeds": {"a": 2}}, {"caveats": ["leak"]}):
        assert content_hash(folder(tmp_path, **{"result.json": card(**counts)})) != before
    folder(tmp_path, **{"result.json": "[]"})  # by another program
    content_hash(tmp_path)


def test_a_record_tells_all_that_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    source = folder(tmp_path / "in", a="1")
    parent = append_record(source, Provenance.here())
    out = folder(tmp_path / "out", b="2")
    append_record(out, Provenance.here(seeds={"x": 3}, config={"k": 1}, parents=(str(source),)))
    line = (out / "provenance.jsonl").read_text()
    record = json.loads(line)
    assert record["seeds"] == {"x": 3} and record["config"] == {"k": 1} and record["argv"]
    assert record["inputs"] == {str(source): content_hash(source)} and record["parents"] == [parent["id"]]
    assert record["outputs"] == {"b": content_hash(out / "b")} and record["content"] == content_hash(out)
    assert record["packages"]["numpy"] and record["packages"]["python"] and record["date"]
    assert (record["commit"], record["diff"]) == git_state()
    assert set(record["environment"]) <= set(ENVIRONMENT) and record["environment"]["OMP_NUM_THREADS"] == "1"
    assert "secret-of-mine" not in line and "HOME" not in record["environment"]
    assert unaltered(record) and not unaltered({**record, "seeds": {"x": 4}})


def _append(path: Path) -> None:
    for _ in range(20):
        append_record(path, Provenance("0"), outputs={"a": "0" * 64}, filler="x" * 20_000)


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    folder(tmp_path, a="1")
    workers = [multiprocessing.get_context("fork").Process(target=_append, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lines = (tmp_path / "provenance.jsonl").read_text().splitlines()
    assert len(lines) == len(read_records(tmp_path)) == 40
    assert all(map(unaltered, read_records(tmp_path)))


def test_a_line_torn_by_a_kill_costs_no_other(tmp_path):
    folder(tmp_path, a="1")
    append_record(tmp_path, Provenance("0"))
    with open(tmp_path / "provenance.jsonl", "a") as file:
        file.write('{"format": 1, "id"')
    append_record(tmp_path, Provenance("1"))
    assert [r["torchmem"] for r in read_records(tmp_path)] == ["0", "1"]


def test_a_record_of_another_format_is_refused(tmp_path):
    (tmp_path / "provenance.jsonl").write_text('{"format": 99}\n')
    with pytest.raises(ArtefactError, match="format 99"):
        read_records(tmp_path)


def test_a_part_is_found_in_the_log_of_the_whole(tmp_path):
    folder(tmp_path / "run", ckpt__s__agent="1")
    record = append_record(tmp_path / "run", Provenance("0"))
    assert last_record(tmp_path / "run" / "ckpt" / "s") == record
    assert last_record(tmp_path / "run" / "elsewhere") is None, "made by somebody else"
    one = folder(tmp_path, **{"page.html": "x"}) / "page.html"
    append_record(one, Provenance("2"))
    assert (last_record(one) or {})["torchmem"] == "2" and (tmp_path / "page.html.provenance.jsonl").exists()
