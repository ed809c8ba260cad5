"""Seven kinds of cells, disjoint, by the thresholds of pRNN and vviggyy/dreamerv3f."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

GROUPS = ("untuned", "HD_cells", "single_field", "border_cells", "spatial_HD", "complex_cells", "dead")
THRESHOLDS = {"si": 0.5, "ev": 0.5, "ev_untuned": 0.15, "hd": 0.5, "asymmetry": 3.0, "border": 0.0}


def group_units(scores: Mapping[str, np.ndarray], thresholds: Mapping[str, float]) -> np.ndarray:
    """(U,) index into GROUPS. scores: si, ev, hd, border, peaks, asymmetry, field_size, each (U,); NaN meets no
    threshold from above. The order decides: dead, untuned, HD, border, single field, spatial HD, complex."""
    si, ev, hd = (np.nan_to_num(scores[name], nan=0.0) for name in ("si", "ev", "hd"))
    t = thresholds
    dead = np.isnan(scores["field_size"]) & np.isnan(scores["asymmetry"])
    flat = (ev <= t["ev_untuned"]) & (si <= t["si"])
    with np.errstate(invalid="ignore"):
        border = (scores["border"] > t["border"]) & (scores["asymmetry"] > t["asymmetry"])
        single = (scores["peaks"] == 1) & (ev > t["ev"]) & (scores["asymmetry"] < t["asymmetry"])
    both = (si > t["si"]) & (hd > t["hd"])
    rules = {"dead": dead, "untuned": flat & (hd <= t["hd"]), "HD_cells": flat, "border_cells": border,
             "single_field": single, "spatial_HD": both}  # fmt: skip
    return np.select(list(rules.values()), [GROUPS.index(name) for name in rules], GROUPS.index("complex_cells"))
