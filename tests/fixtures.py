"""Real data that is not committed: recordings of the programs that results are compared with. See TORCHMEM_FIXTURES."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("TORCHMEM_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures"))
DREAMERV3F = ROOT / "dreamerv3f"  # vviggyy/dreamerv3f
UPDATES = sorted((ROOT / "isolating_updates").glob("*/metadata.json"))  # Jozdien/isolating-updates, one per run


def _needs(there: object, whose: str) -> pytest.MarkDecorator:
    reason = f"real data, not committed: no {whose} in {ROOT}; set TORCHMEM_FIXTURES to the folder that holds it"
    return pytest.mark.skipif(not there, reason=reason)


needs_dreamerv3f = _needs((DREAMERV3F / "episode_001.pkl").is_file(), "dreamerv3f")
needs_updates = _needs(UPDATES, "isolating_updates")
