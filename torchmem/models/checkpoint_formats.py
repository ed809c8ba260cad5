"""What changed between the formats of agent.safetensors, and how older files are read.

    2    as now
    1    before 21 November 2026 the block weights of the dynamics and the decoder were (blocks, in, out); later files
         of this format already have them as (blocks, out, in). The shapes tell: a core's first block layer is never
         square.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from torchmem.models.layers import BlockLinear

FORMAT = 2  # written
READABLE = (1, 2)


def transposed(agent: Any, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a format 1 file in today's layout where they have the old one; {} where they already fit.

    A square block fits both ways, so the file is judged as a whole: by the blocks that are not square.
    """
    names = [f"{path}.weight" for path, part in agent.named_modules() if isinstance(part, BlockLinear)]
    own = agent.state_dict()
    shared = [name for name in names if name in found and found[name].dim() == 3]
    telling = [name for name in shared if own[name].shape[1] != own[name].shape[2]]
    if not telling or any(found[name].transpose(1, 2).shape != own[name].shape for name in telling):
        return {}
    return {name: found[name].transpose(1, 2).contiguous() for name in shared}
