"""Fresh latents on their way back into replay, one update late, so that no update waits for the one before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchmem.training.replay import Replay


class WriteBack:
    """Holds the latents of the last update until the next one has been started (the original lags by one step too)."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.index: Tensor | None = None  # (B, T) replay ids
        self.latents: dict[str, Tensor] = {}
        self.copied: torch.cuda.Event | None = None  # fires when the latents have reached host memory

    def push(self, index: Tensor, latents: Mapping[str, Tensor]) -> None:
        """Store what waited, keep this. Starts the transfer to (pinned) host memory without waiting for it."""
        self.flush()
        self.index = index
        self.latents = {key: value.to("cpu", non_blocking=True) for key, value in latents.items()}
        if any(value.is_cuda for value in latents.values()):
            self.copied = torch.cuda.Event()
            self.copied.record()

    def flush(self) -> None:
        """Store what waits, if anything does."""
        if self.index is not None:
            self._arrive()
            self.replay.write_back(self.index, self.latents)
            self.index, self.latents = None, {}

    def state_dict(self) -> dict:
        self._arrive()
        return {} if self.index is None else {"index": self.index, "latents": self.latents}

    def load_state_dict(self, state: Mapping) -> None:
        self.index, self.latents, self.copied = state.get("index"), dict(state.get("latents", {})), None

    def _arrive(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()
            self.copied = None
