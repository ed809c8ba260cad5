"""The code of docs/surgery.md runs, block after block, on a tiny agent; so does the story of examples/."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from torchmem.models.checkpoint import save_agent

ROOT = Path(__file__).resolve().parent.parent


def test_the_surgery_page_runs(tmp_path):
    from tests.surgery.conftest import dreamer, sequence_for

    agent = dreamer()
    save_agent(agent, tmp_path / "run")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "surgery.md").read_text(), re.S)
    assert len(blocks) >= 5
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    given = {"run": tmp_path / "run", "obs": sequence_for(agent), "folder": tmp_path}
    left = runpy.run_path(str(script), init_globals=given)
    assert left["slope"].grad.abs().sum() > 0 and len(left["two"]) == 2
