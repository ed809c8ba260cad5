"""Files of torch.save by other programs: arrays and containers are read, nothing is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from torchmem.errors import TorchmemError


def read_torch_file(file: Path, refusal: type[TorchmemError]) -> Any:
    """What the file holds, on the CPU. Raises `refusal` for one that is missing, damaged, or names anything else."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise refusal(f"{file} is missing") from error
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise refusal(f"{file} holds something else than arrays, refused unread: {reason}") from error
    except Exception as error:  # a damaged file can fail in any operation
        raise refusal(f"{file} is not a complete file of torch.save: {error}") from error
