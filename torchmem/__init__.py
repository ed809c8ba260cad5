"""torchmem: train agents that remember, and take their memory apart.

    import torchmem
    env = torchmem.make_env("memory_maze", size=9)
    model = torchmem.load("runs/dreamer-memory_maze-12m-0")

Names are found on first use, so that `import torchmem` takes milliseconds and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that has it
_HOMES = {
    "EnvSpec": "torchmem.types",
    "Recording": "torchmem.recording",
    "Site": "torchmem.types",
    "Space": "torchmem.types",
    "load": "torchmem.surgery.model",
    "make_env": "torchmem.envs.make",
    "record": "torchmem.surgery.record",
}

if TYPE_CHECKING:
    from torchmem.envs.make import make_env as make_env
    from torchmem.recording import Recording as Recording
    from torchmem.surgery.model import load as load
    from torchmem.surgery.record import record as record
    from torchmem.types import EnvSpec as EnvSpec
    from torchmem.types import Site as Site
    from torchmem.types import Space as Space

__all__ = ["EnvSpec", "Recording", "Site", "Space", "__version__", "load", "make_env", "record"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"torchmem has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
