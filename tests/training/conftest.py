"""Fixtures that several tests of training share."""

from __future__ import annotations

import os

import pytest
import torch

from tests.training import tiny
from torchmem.training import command


@pytest.fixture(autouse=True)
def settings():
    """A run sets the threads of its process; the next test starts with those of before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """What 60 undisturbed steps of the tiny run come to. Read it only."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    threads = torch.get_num_threads()
    assert command.main(tiny.words(folder)) == 0
    torch.set_num_threads(threads)
    return tiny.outcome(folder)


@pytest.fixture
def quick(monkeypatch):
    """No real syncs."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
