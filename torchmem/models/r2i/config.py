"""Every number of R2I, with its meaning. Defaults are chandar-lab/Recall2Imagine @ 6e317e7, popgym."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torchmem.options import option


@dataclasses.dataclass
class SSMConfig:
    """The stack of S5 layers."""

    layers: int = option(3, "Layers of the stack.")
    states: int = option(128, "Complex state channels of each layer, P (with conj_sym half of them are kept).")
    blocks: int = option(8, "Equal HiPPO blocks that the state channels begin as.")
    discretisation: Literal["bilinear", "zoh"] = option("bilinear", "From continuous to discrete time.")
    conj_sym: bool = option(False, "Keep one of each conjugate pair of channels and double the real part.")
    clip_eigs: bool = option(False, "Keep the real parts of the eigenvalues below -1e-4.")
    c_init: Literal["trunc_standard_normal", "row_normal", "complex_normal"] = option(
        "trunc_standard_normal", "First values of C; the original's own is sqrt(H) smaller than S5's row by row."
    )
    dt_min: float = option(1e-3, "Smallest step size at first; channels are log-uniform up to dt_max.")
    dt_max: float = option(1e-1, "Largest step size at first.")
    prenorm: bool = option(False, "Norm before each layer instead of after its residual.")
    norm: bool = option(True, "Norm the layers at all.")
    mlp: bool = option(True, "A linear map after each layer's nonlinearity.")
    glu: bool = option(True, "Gate that map by the sigmoid of another.")
    legacy_reset: bool = option(False, "Reset inside sequences as the original's parallel pass did, defects and all.")

    @property
    def own_states(self) -> int:
        """Complex channels a layer really has."""
        return self.states // 2 if self.conj_sym else self.states

    def __post_init__(self) -> None:
        for name in ("layers", "states", "blocks"):
            check(getattr(self, name) >= 1, self, name, "at least 1")
        check(self.own_states % self.blocks == 0, self, "blocks", f"a divisor of the {self.own_states} channels")
        check(0 < self.dt_min <= self.dt_max, self, "dt_min", "above 0 and at most dt_max")
        check(self.discretisation in ("bilinear", "zoh"), self, "discretisation", "bilinear or zoh")
        choices = ("trunc_standard_normal", "row_normal", "complex_normal")
        check(self.c_init in choices, self, "c_init", ", ".join(choices))


def check(ok: bool, config: object, key: str, meaning: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {meaning}; got {getattr(config, key)!r}")
