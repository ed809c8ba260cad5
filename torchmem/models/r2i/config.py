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


@dataclasses.dataclass
class R2ILossScales:
    """Weights of the named losses in the total."""

    rec: float = option(1.0, "Reconstruction, for each decoded key.")
    rew: float = option(1.0, "Reward prediction.")
    con: float = option(1.0, "Continuation prediction.")
    dyn: float = option(0.5, "KL that trains the prior towards the posterior.")
    rep: float = option(0.1, "KL that trains the posterior towards the prior.")
    policy: float = option(1.0, "REINFORCE on imagined returns.")
    value: float = option(1.0, "Critic on imagined returns.")


@dataclasses.dataclass
class R2IConfig:
    """Architecture, losses and optimisers of R2I (Samsami et al. 2024, arXiv:2403.04253)."""

    name: str = option("r2i", "Which agent this is.")
    # Sizes.
    deter: int = option(1024, "Units of h, which the layers' output is projected to.")
    units: int = option(512, "Width of the S5 layers and of posterior and prior.")
    ssm: SSMConfig = option(SSMConfig, "The stack of S5 layers.")
    stoch: int = option(32, "Number of categorical variables in the stochastic state z.")
    classes: int = option(32, "Classes of each stochastic variable.")
    depth: int = option(32, "Convolution depth; stages have depth * mults channels.")
    vector_units: int = option(512, "Units of the vector encoder and decoder.")
    head_units: int = option(512, "Units of reward, continuation, actor and critic.")
    # Architecture.
    policy_input: Literal["output", "hidden", "full"] = option(
        "hidden", "What actor and critic read: output h and z; hidden: S5 states and z; full: h, z and S5 states."
    )
    start: Literal["learned", "zeros"] = option("learned", "The state that every episode starts from.")
    stored_start: bool = option(
        False, "Start replayed sequences from the states of acting, kept in replay, instead of as new episodes."
    )
    mults: list[int] = option([1, 2, 4, 8], "Channel multipliers of the image stages; each halves the resolution.")
    vector_layers: int = option(1, "Layers of the vector encoder and decoder.")
    reward_layers: int = option(2, "Layers of the reward head.")
    cont_layers: int = option(2, "Layers of the continuation head.")
    policy_layers: int = option(2, "Layers of the actor.")
    value_layers: int = option(2, "Layers of the critic.")
    bins: int = option(255, "Bins of the two-hot reward and value heads.")
    unimix: float = option(0.01, "Uniform share mixed into the categorical latents.")
    policy_unimix: float = option(0.01, "Uniform share mixed into discrete policies.")
    min_std: float = option(0.1, "Smallest standard deviation of a continuous policy.")
    max_std: float = option(1.0, "Largest standard deviation of a continuous policy.")
    policy_outscale: float = option(1.0, "Scale of the actor's output initialisation.")
    # Losses.
    scales: R2ILossScales = option(R2ILossScales, "Weights of the losses.")
    free_nats: float = option(1.0, "KL below this many nats is free, per step, summed over variables.")
    horizon: float = option(333.0, "Discount horizon in agent steps; discount = 1 - 1/horizon.")
    imag_length: int = option(15, "Steps imagined from every replayed state.")
    lam: float = option(0.95, "Lambda of imagined returns.")
    entropy: float = option(3e-4, "Actor entropy bonus per nat.")
    slow_reg: float = option(1.0, "Weight of the critic's pull towards the slow critic.")
    slow_rate: float = option(0.02, "Share of the critic mixed into the slow critic after each update.")
    return_rate: float = option(0.01, "Rate of the return range's moving average.")
    return_limit: float = option(1.0, "Smallest return range that advantages are divided by.")
    return_low: float = option(5.0, "Lower percentile of the return range.")
    return_high: float = option(95.0, "Upper percentile of the return range.")
    # Optimisers: Adam, with a norm limit of its own for the world model, each kind of S5 tensor, actor and critic.
    lr: float = option(1e-4, "Learning rate of the world model.")
    ssm_lr: float | None = option(None, "Learning rate of the S5 tensors; null: as the world model.")
    actor_lr: float = option(3e-5, "Learning rate of the actor.")
    critic_lr: float = option(3e-5, "Learning rate of the critic.")
    clip: float = option(1000.0, "Largest gradient norm of the world model, and of each kind of S5 tensor.")
    actor_clip: float = option(100.0, "Largest gradient norm of the actor.")
    critic_clip: float = option(100.0, "Largest gradient norm of the critic.")
    eps: float = option(1e-8, "Adam's epsilon for the world model.")
    behaviour_eps: float = option(1e-5, "Adam's epsilon for actor and critic.")
    weight_decay: float = option(0.0, "Decoupled decay of the world model's weights (not of S5, biases or norms).")
    beta1: float = option(0.9, "Momentum of the gradient.")
    beta2: float = option(0.999, "Decay of the squared gradient.")
    warmup: int = option(0, "Updates of linear warm-up from 0.")

    contdisc = False  # the discount is in the return, not in the continuation label

    @property
    def hidden(self) -> int:
        """Real numbers in one layer's state."""
        return 2 * self.ssm.own_states

    @property
    def memory_size(self) -> int:
        """Real numbers in the states of all layers."""
        return self.ssm.layers * self.hidden

    def __post_init__(self) -> None:
        for name in ("deter", "units", "stoch", "classes", "depth", "vector_units", "head_units", "imag_length"):
            check(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("lr", "actor_lr", "critic_lr", "clip", "actor_clip", "critic_clip", "eps", "behaviour_eps"):
            check(getattr(self, name) > 0, self, name, "above 0")
        check(self.horizon > 1, self, "horizon", "above 1")
        check(self.classes <= 256, self, "classes", "at most 256, because replay stores them as bytes")
        check(self.policy_input in ("output", "hidden", "full"), self, "policy_input", "output, hidden or full")
        check(self.start in ("learned", "zeros"), self, "start", "learned or zeros")
