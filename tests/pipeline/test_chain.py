"""`torchmem provenance`: the tree from a result back to where it began, and what is no longer true of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.pipeline.planted import chain as chain_file
from tests.pipeline.planted import run
from torchmem.artefact import ArtefactError, append_record, content_hash
from torchmem.cli import main
from torchmem.pipeline.chain import chain, tree
from torchmem.provenance import Provenance
from torchmem.recording import Recording, RecordingWriter
from torchmem.result import Result, load_result


@dataclasses.dataclass(frozen=True)
class Score(Result):
    score: float

    def summary(self) -> str:
        return f"score {self.score}"

    def plot(self, ax=None):
        return self.axes(ax)


def test_a_stage_leads_back_through_all_it_read(tmp_path):
    run(chain_file(tmp_path))
    node = chain(tmp_path / "run" / "third")
    names = []
    while node["inputs"]:
        names.append(node["record"]["stage"]["name"])
        (node,) = node["inputs"]
    assert [*names, node["record"]["stage"]["name"]] == ["third", "second", "first"]
    shown = tree(chain(tmp_path / "run" / "third"))
    assert shown.index("stage third") < shown.index("stage second") < shown.index("stage first, ")
    assert "seed one=3" in shown and "└─" in shown
    assert tree(chain(tmp_path / "run" / "third" / "text")).count("stage third") == 1, "a file within it"


def test_check_finds_what_was_changed(tmp_path, capsys):
    run(chain_file(tmp_path))
    assert main(["provenance", str(tmp_path / "run" / "third"), "--check"]) == 0
    (tmp_path / "run" / "first" / "text").write_text("forged")
    assert main(["provenance", str(tmp_path / "run" / "third")]) == 0
    capsys.readouterr()
    assert main(["provenance", str(tmp_path / "run" / "third"), "--check"]) == 1
    out = capsys.readouterr().out
    assert out.count("CHANGED") == 1 and out.index("stage second") < out.index("CHANGED")


def test_a_forged_record_is_found(tmp_path):
    run(chain_file(tmp_path))
    log = tmp_path / "run" / "first" / "provenance.jsonl"
    log.write_text(log.read_text().replace('"one": 3', '"one": 4'))
    assert "THIS RECORD WAS ALTERED" in tree(chain(tmp_path / "run" / "third"))


def test_an_input_that_was_made_anew_is_told_from_the_one_that_was_read(tmp_path):
    """Two sittings wrote the source; the result names the content it read, and the tree finds that record."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "x").write_text("1")
    append_record(source, Provenance("first"))
    read = content_hash(source)
    result = tmp_path / "result"
    result.mkdir()
    (result / "y").write_text("2")
    append_record(result, Provenance("0"), inputs={str(source): read})
    (source / "x").write_text("11")
    append_record(source, Provenance("second"))
    node = chain(result)["inputs"][0]
    assert node["record"]["torchmem"] == "first"
    assert chain(result, check=True)["inputs"][0]["altered"]


def test_a_result_of_a_recording_names_it(tmp_path):
    agent = tmp_path / "run" / "agent"
    agent.mkdir(parents=True)
    (agent / "agent.json").write_text(json.dumps({"torchmem": "0", "weights_sha256": "f" * 64}))
    made_by = Provenance.here(checkpoint=str(agent), seeds={"record": 1})
    with RecordingWriter(tmp_path / "rec", control_hz=1, provenance=made_by) as writer:
        writer.append({"memory": np.zeros((3, 2), np.float32)}, {"reward": np.zeros(3, np.float32)})
        writer.finish()
    Score(1.0, provenance=Recording(tmp_path / "rec").provenance.again()).save(tmp_path / "score")
    assert load_result(tmp_path / "score").provenance.parents == (str(tmp_path / "rec"),)
    node = chain(tmp_path / "score", check=True)
    assert node["inputs"][0]["path"] == str(tmp_path / "rec")
    assert node["inputs"][0]["inputs"][0]["path"] == str(agent)
    assert "weights ffffffffffffffff" in tree(node) and not node["altered"]
    before = node["content"]
    load_result(tmp_path / "score").save(tmp_path / "score", overwrite=True)
    records = (tmp_path / "score" / "provenance.jsonl").read_text().splitlines()
    assert len(records) == 2 and chain(tmp_path / "score")["content"] == before, "the log goes on in the new folder"


def test_what_nobody_knows_is_refused(tmp_path):
    with pytest.raises(ArtefactError, match="does not exist"):
        chain(tmp_path / "x")
    with pytest.raises(ArtefactError, match="nothing is known"):
        chain(tmp_path)
