"""Where the files of vviggyy/dreamerv3f lie, for the tests that compare with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FIXTURES = Path(
    os.environ.get("TORCHMEM_DREAMERV3F", Path(__file__).resolve().parents[2] / "shared/fixtures/dreamerv3f")
)
needs_fixtures = pytest.mark.skipif(
    not (FIXTURES / "episode_001.pkl").is_file(),
    reason=f"no recordings of vviggyy/dreamerv3f in {FIXTURES}; set TORCHMEM_DREAMERV3F to their folder",
)
