"""Copies of the log for viewers: TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """What the logger asks of a viewer. The x axis is env steps."""

    name: str

    def scalars(self, values: Mapping[str, float], *, step: int) -> None: ...

    def picture(self, name: str, content: bytes, height: int, width: int, path: Path, *, step: int) -> None:
        """content: GIF or PNG bytes, which also lie at `path`."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in <logdir>/tb. Points after `start` of an earlier sitting are hidden, for they are done again."""

    name = "TensorBoard"

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, content: bytes, height: int, width: int, path: Path, *, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
        writer = self._writer._get_file_writer()
        assert writer is not None  # None only for a writer without a folder
        writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One W&B run per run folder, taken up again on resume."""

    name = "W&B"

    def __init__(self, logdir: Path, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]  # optional, asked for by name

        # The folder is the identity of a run here, so it names the run there too.
        identity = hashlib.sha256(str(logdir.resolve()).encode()).hexdigest()[:16]
        self._wandb: Any = wandb
        self._run = wandb.init(
            project="torchmem", id=identity, name=logdir.name, dir=str(logdir), resume="allow", config=dict(config)
        )

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, name: str, content: bytes, height: int, width: int, path: Path, *, step: int) -> None:
        kind = self._wandb.Video if path.suffix == ".gif" else self._wandb.Image
        self._run.log({name: kind(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_sinks(names: Sequence[str], logdir: Path, start: int, config: Mapping[str, Any]) -> list[Sink]:
    """Raises ValueError for a sink that is unknown or not installed: asked for, it must be there."""
    sinks: list[Sink] = []
    for name in names:
        if name == "tensorboard":
            sinks.append(TensorBoard(logdir / "tb", start))
        elif name == "wandb":
            if importlib.util.find_spec("wandb") is None:
                raise ValueError("log.sinks: wandb is not installed; pip install wandb, or log.sinks=[tensorboard]")
            sinks.append(WandB(logdir, config))
        else:
            raise ValueError(f"unknown sink '{name}' in log.sinks; valid: tensorboard, wandb")
    return sinks
