"""Recordings: activations with covariates, clock and provenance, on disk, whoever made them. A leaf, without torch."""

from __future__ import annotations

from torchmem.recording.column import Column
from torchmem.recording.reader import Recording
from torchmem.recording.store import EPISODE, RecordingError
from torchmem.recording.writer import RecordingWriter

__all__ = ["EPISODE", "Column", "Recording", "RecordingError", "RecordingWriter"]
