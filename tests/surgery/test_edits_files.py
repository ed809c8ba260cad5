"""Edits on disk: what comes back equals what went in, and damage is told."""

from __future__ import annotations

import json

import pytest
import torch

from torchmem.surgery.edit_files import EditFileError, load_edits, save_edits
from torchmem.surgery.edits import Ablate, At, Clamp, Edits, Patch, Project, Steer
from torchmem.surgery.movement import Collapse, Swap
from torchmem.surgery.weights import WeightDelta, WeightMask


def all_kinds() -> Edits:
    a, b = ({"w": torch.randn(3, 4), "x.bias": torch.randn(3)} for _ in range(2))
    return Edits.of(
        [
            Patch("h", torch.randn(1, 4, 6), offset=-2, time=slice(2, None, 2), rows=slice(0, 2)),
            Ablate("h", units=(5, 1), time=3, rows=(0, 1)),
            Ablate("h", "mean", mean=torch.randn(6)),
            Ablate("h", "resample", bank=torch.randn(5, 6), seed=4),
            Clamp("h", low=-0.1, high=torch.ones(6)),
            Clamp("h", 1 / 3),
            Steer("h", torch.randn(6).bfloat16(), -1.5),
            Project("h", torch.randn(2, 6), keep=True, mean=torch.randn(6).double()),
            Swap("h", torch.randn(2, 6), torch.randn(2, 6)),
            Collapse("h", torch.randn(1, 6)),
            WeightMask({"w": torch.rand(3, 4) > 0.5}, base="abc"),
            -0.5 * WeightDelta.between(a, b),
            WeightMask({}),
        ]
    )


def test_every_kind_comes_back_equal(tmp_path):
    edits = all_kinds()
    found = load_edits(save_edits(tmp_path / "e", edits))
    assert found == edits and found.digest == edits.digest and [str(e) for e in found] == [str(e) for e in edits]
    assert found[10].base == "abc" and found[11].base == edits[11].base  # type: ignore[attr-defined]
    x, at = torch.randn(2, 4, 6), At(range(4))
    for old, new in zip(edits[:10], found[:10]):
        assert torch.equal(old.apply(x, at), new.apply(x, at))  # type: ignore[attr-defined]
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["edits.json", "edits.safetensors"]
    assert load_edits(save_edits(tmp_path / "none", [])) == Edits()


def test_saved_edits_are_never_overwritten(tmp_path):
    save_edits(tmp_path / "e", Ablate("h"))
    with pytest.raises(FileExistsError, match="choose another"):
        save_edits(tmp_path / "e", Ablate("g"))
    assert load_edits(tmp_path / "e") == Edits.of(Ablate("h"))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    import torchmem.surgery.edit_files as files

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "atomic_write", full)
    with pytest.raises(OSError, match="No space"):
        save_edits(tmp_path / "e", Ablate("h"))
    assert list(tmp_path.iterdir()) == []


def test_damage_names_the_file(tmp_path):
    with pytest.raises(EditFileError, match="no saved edits"):
        load_edits(tmp_path / "nothing")
    folder = save_edits(tmp_path / "e", all_kinds())
    card, store = folder / "edits.json", folder / "edits.safetensors"
    text, content = card.read_text(), store.read_bytes()
    store.write_bytes(content[:-5] + b"12345")
    with pytest.raises(EditFileError, match=r"edits\.safetensors is truncated or altered"):
        load_edits(folder)
    store.unlink()
    with pytest.raises(EditFileError, match=r"edits\.safetensors is missing"):
        load_edits(folder)
    store.write_bytes(content)
    card.write_text(text.replace('"seed": 4', '"seed": 5'))
    with pytest.raises(EditFileError, match="was altered"):
        load_edits(folder)
    card.write_text(text[: len(text) // 2])
    with pytest.raises(EditFileError, match="not readable JSON"):
        load_edits(folder)
    card.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(EditFileError, match="format 99"):
        load_edits(folder)
