"""What a circuit is made of: which gates, which inputs, how many weights each unit keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# by the last words of a parameter's name: in which order a gated layer's rows stand, and what its columns read
GATES = {
    "core.weight_ih": {3: ("reset", "update", "candidate"), 4: ("write", "keep", "candidate", "show")},
    "core.weight_hh": {3: ("reset", "update", "candidate"), 4: ("write", "keep", "candidate", "show")},
    "core.gates.weight": {3: ("reset", "candidate", "update")},
}
READS = {"core.weight_ih": "input", "core.weight_hh": "recurrent"}


def anatomy(masks: Mapping[str, np.ndarray], units: int) -> dict[str, tuple[int, int]]:
    """(kept, all) weights by part: of each gate of a gated core, and of what it reads where input and state are apart.

    units: of the core, to tell three gates from four. Parameters without gates do not appear.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, mask in masks.items():
        words = next((w for w in GATES if name == w or name.endswith("." + w)), None)
        if words is None:
            continue
        count = mask.size // mask.shape[-1] // units
        if count not in GATES[words]:
            continue
        gates = GATES[words][count]
        rows = np.moveaxis(mask, -2, 0)  # (out, ...), blocks hold their own gates each
        for gate, part in zip(gates, np.split(rows, count), strict=True):
            label = f"{gate}, {READS[words]}" if words in READS else gate
            found[label] = (int(part.sum()), part.size)
    return found


def degrees(masks: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Of each parameter (out, in, ...) or (blocks, out, in): kept weights per output and per input that has any."""
    out = {}
    for name, mask in masks.items():
        first = 1 if mask.ndim == 3 else 0
        flat = np.moveaxis(mask, (first, first + 1), (-2, -1)).reshape(-1, mask.shape[first], mask.shape[first + 1])
        into, onto = (flat.sum(axis).ravel() for axis in (2, 1))
        out[name] = {
            "outputs": int((into > 0).sum()), "inputs": int((onto > 0).sum()),
            "per_output": float(into[into > 0].mean()) if into.any() else 0.0,
            "per_input": float(onto[onto > 0].mean()) if onto.any() else 0.0,
            "most_per_output": int(into.max(initial=0)),
        }  # fmt: skip
    return out
