"""Every number of a trained simulator, with its meaning. Defaults suit a CPU and small worlds; irl_rssm is a preset."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.options import option


@dataclasses.dataclass
class SimulatorScales:
    """Weights of the named losses: those of interpreting-rl-behavior (spec 3.4), whose sums over steps they weigh."""

    image: float = option(1.0, "Half the squared error of an image, pixels in [0, 1], summed over pixels.")
    vector: float = option(1.0, "Of every other observation key: half the squared symlog error, or cross-entropy.")
    reward: float = option(1.0, "Half the squared error of the reward.")
    terminal: float = option(1.0, "Cross-entropy of the end of the episode.")
    memory: float = option(1.0, "Half the squared error of the agent's memory, moved by simulated observations.")
    kl: float = option(12.0, "Balanced KL between posterior and prior.")
    update: float = option(0.5, "Length of the change of h in a step.")
    repulsion: float = option(100.0, "Pushes the starts of a batch apart on the sphere.")
    start: float = option(1.0, "Guess of what the agent carried and did before the start.")
    latent: float = option(1.0, "KL of a start to its prior (bottleneck=vae).")


@dataclasses.dataclass
class SimulatorConfig:
    """Architecture, losses and optimiser of a simulator that is trained around a frozen agent."""

    name: str = option("simulator", "Which agent this is: none, but trained, saved and resumed like one.")
    # What it is made of.
    vision: Literal["shared", "irl"] = option(
        "shared", "shared: encoder and decoder of Dreamer, any observation; irl: the original's, one 64x64x3 image."
    )
    bottleneck: Literal["sphere", "vae"] = option("sphere", "What a start is: a point of a sphere, or a Gaussian's.")
    transition: Literal["rssm", "s5"] = option("rssm", "What moves the state: a LayerNorm GRU, or S5 layers.")
    latents: Literal["categorical", "gaussian"] = option(
        "categorical", "What z is; gaussian needs transition=rssm and has no use for classes and unimix."
    )
    context: int = option(3, "Real steps that a start is made from; the last one is the first to be simulated.")
    # Sizes.
    latent: int = option(32, "Numbers of a start.")
    deter: int = option(128, "Units of h.")
    stoch: int = option(8, "Number of categorical variables in the stochastic state z.")
    classes: int = option(8, "Classes of each.")
    hidden: int = option(128, "Units of the layers inside the transition.")
    encoder_units: int = option(128, "Units of the GRU over the context, and of the two layers after it.")
    head_layers: int = option(2, "Hidden layers of the reward and the terminal head.")
    head_units: int = option(128, "Units of these.")
    ssm: SSMConfig = option(SSMConfig, "The S5 layers (transition=s5).")
    # vision=shared: names and meanings as in DreamerConfig.
    depth: int = option(8, "Convolution depth; stages have depth * mults channels.")
    units: int = option(128, "Units of the MLP layers in encoder and decoder.")
    mults: list[int] = option([2, 3, 4, 4], "Channel multipliers of the image stages; each halves the resolution.")
    kernel: int = option(5, "Side of the convolution kernels, pixels.")
    vector_layers: int = option(2, "Layers of the vector encoder and decoder.")
    decoder_blocks: int = option(1, "Blocks of the decoder's projection from h.")
    unimix: float = option(0.0, "Uniform share mixed into the categorical latents.")
    # The agent in the loop; training fills in what the agent says.
    guessed: int = option(0, "Numbers of the agent's carry, its last action apart; from the agent.")
    bounded: bool = option(True, "Guess the agent's carry through tanh.")
    # Losses.
    scales: SimulatorScales = option(SimulatorScales, "Weights of the losses.")
    balance: float = option(0.8, "Share of the KL that trains the prior; the rest trains the posterior.")
    legacy_repulsion: bool = option(
        False, "Repulsion as a sum over all pairs, each start with itself too, as the original has it."
    )
    truncate: int = option(0, "Simulated steps after which gradients through time stop, world's and agent's; 0: never.")
    # Optimiser.
    lr: float = option(5e-4, "Learning rate of Adam.")
    clip: float = option(100.0, "Largest norm of the gradient.")
    eps: float = option(1e-8, "Adam's epsilon.")
    held_out: float = option(0.1, "Share of the levels that training never sees: what fidelity is measured on.")

    def __post_init__(self) -> None:
        for key in ("latent", "deter", "stoch", "classes", "hidden", "encoder_units", "head_units", "units", "depth"):
            _check(getattr(self, key) >= 1, self, key, "at least 1")
        _check(self.context >= 2, self, "context", "at least 2")
        _check(self.head_layers >= 1, self, "head_layers", "at least 1")
        for key in ("guessed", "truncate"):
            _check(getattr(self, key) >= 0, self, key, "at least 0")
        for key in ("lr", "clip", "eps"):
            _check(getattr(self, key) > 0, self, key, "above 0")
        for key in ("balance", "unimix"):
            _check(0 <= getattr(self, key) <= 1, self, key, "in 0..1")
        _check(0 < self.held_out < 1, self, "held_out", "between 0 and 1")
        for key, valid in (("vision", ("shared", "irl")), ("bottleneck", ("sphere", "vae"))):
            _check(getattr(self, key) in valid, self, key, " or ".join(valid))
        _check(self.transition in ("rssm", "s5"), self, "transition", "rssm or s5")
        _check(self.latents in ("categorical", "gaussian"), self, "latents", "categorical or gaussian")
        if self.transition == "s5":  # R2I's layers, which observe a whole sequence at once
            _check(self.latents == "categorical", self, "latents", "categorical with transition=s5")
            _check(not self.truncate, self, "truncate", "0 with transition=s5")

    @property
    def r2i(self) -> R2IConfig:
        """The same numbers as R2I's parts want them: its S5 dynamics and its optimiser are used here too."""
        return R2IConfig(
            deter=self.deter, units=self.hidden, ssm=self.ssm, stoch=self.stoch, classes=self.classes, start="zeros",
            unimix=self.unimix, lr=self.lr, clip=self.clip, eps=self.eps,
        )  # fmt: skip


def _check(ok: bool, config: Any, key: str, meaning: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {meaning}; got {getattr(config, key)!r}")
