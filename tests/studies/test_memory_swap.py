"""swap_memory: intervals and refusals. On trained agents: tests/test_examples.py."""

from __future__ import annotations

import pytest

from tests.surgery.conftest import dreamer
from torchmem.intervals import wilson
from torchmem.studies.memory_swap import swap_memory
from torchmem.surgery.items import TraceError
from torchmem.surgery.model import Model


def test_wilson_matches_the_textbook():
    rate, low, high = wilson(8, 10)
    assert rate == 0.8 and low == pytest.approx(0.4902, abs=1e-3) and high == pytest.approx(0.9433, abs=1e-3)
    assert wilson(0, 200)[2] < 0.02


def test_a_world_without_a_cue_is_refused():
    with pytest.raises(TraceError, match="no cue"):
        swap_memory(Model(dreamer()), pairs=2)
