"""Edits of weights as data; `overlay.py` puts them on a module tree."""

from __future__ import annotations

from torchmem.surgery.weight_delta import WeightDelta
from torchmem.surgery.weight_edit import WeightEdit, WeightFileError, parameters_of, weights_hash
from torchmem.surgery.weight_mask import WeightMask

__all__ = ["WeightDelta", "WeightEdit", "WeightFileError", "WeightMask", "parameters_of", "weights_hash"]
