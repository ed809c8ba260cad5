"""The world of a simulator that is being trained: a recording, and who acts in it."""

from __future__ import annotations

import dataclasses

from torchmem.options import option


@dataclasses.dataclass
class RecordedConfig:
    """env=recording: for agent=simulator only. `torchmem simulator train` fills it in."""

    path: str = option("", "Folder of the recording (torchmem record).")
    agent: str = option("", "Run, snapshot or folder of the agent in the loop.")
