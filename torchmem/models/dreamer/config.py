"""Every number of DreamerV3, with its meaning. Defaults are danijar/dreamerv3 @ e3f0224, size12m."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torchmem.options import option


@dataclasses.dataclass
class LossScales:
    """Weights of the named losses in the total."""

    rec: float = option(1.0, "Reconstruction, for each decoded key.")
    rew: float = option(1.0, "Reward prediction.")
    con: float = option(1.0, "Continuation prediction.")
    dyn: float = option(1.0, "KL that trains the prior towards the posterior.")
    rep: float = option(0.1, "KL that trains the posterior towards the prior.")
    policy: float = option(1.0, "REINFORCE on imagined returns.")
    value: float = option(1.0, "Critic on imagined returns.")
    repval: float = option(0.3, "Critic on replayed rewards; also trains encoder and dynamics.")


@dataclasses.dataclass
class DreamerConfig:
    """Architecture, losses and optimiser of DreamerV3."""

    name: str = option("dreamer", "Which agent this is.")
    # Sizes: the five fields that the `size` group sets (spec section 13).
    deter: int = option(2048, "Units of the recurrent state h.")
    hidden: int = option(256, "Units of the layers inside the RSSM.")
    classes: int = option(16, "Classes of each stochastic variable.")
    depth: int = option(16, "Convolution depth; stages have depth * mults channels.")
    units: int = option(256, "Units of the MLP layers in encoder, decoder and heads.")
    # Architecture that no size changes.
    stoch: int = option(32, "Number of categorical variables in the stochastic state z.")
    blocks: int = option(8, "Blocks of the block-diagonal GRU.")
    mults: list[int] = option([2, 3, 4, 4], "Channel multipliers of the image stages; each halves the resolution.")
    kernel: int = option(5, "Side of the convolution kernels, pixels.")
    vector_layers: int = option(3, "Layers of the vector encoder and decoder.")
    dyn_layers: int = option(1, "Block layers before the GRU gates.")
    obs_layers: int = option(1, "Layers of the posterior.")
    prior_layers: int = option(2, "Layers of the prior.")
    reward_layers: int = option(1, "Layers of the reward head.")
    cont_layers: int = option(1, "Layers of the continuation head.")
    policy_layers: int = option(3, "Layers of the actor.")
    value_layers: int = option(3, "Layers of the critic.")
    decoder_blocks: int = option(8, "Blocks of the decoder's projection from h (original: bspace).")
    bins: int = option(255, "Bins of the two-hot reward and value heads.")
    unimix: float = option(0.01, "Uniform share mixed into the categorical latents.")
    absolute: bool = option(False, "Posterior from tokens alone, without h.")
    min_std: float = option(0.1, "Smallest standard deviation of a continuous policy.")
    max_std: float = option(1.0, "Largest standard deviation of a continuous policy.")
    policy_outscale: float = option(0.01, "Scale of the actor's output initialisation.")
    # Losses.
    scales: LossScales = option(LossScales, "Weights of the losses.")
    free_nats: float = option(1.0, "KL below this many nats is free, per step, summed over variables.")
    horizon: float = option(333.0, "Discount horizon in agent steps; discount = 1 - 1/horizon.")
    contdisc: bool = option(True, "Put the discount into the continuation label instead of the return.")
    imag_length: int = option(15, "Steps imagined from every replayed state.")
    lam: float = option(0.95, "Lambda of imagined returns.")
    replay_lam: float = option(0.95, "Lambda of replayed returns.")
    entropy: float = option(3e-4, "Actor entropy bonus per nat.")
    slow_reg: float = option(1.0, "Weight of the critic's pull towards the slow critic.")
    slow_rate: float = option(0.02, "Share of the critic mixed into the slow critic after each update.")
    reward_grad: bool = option(True, "Let the reward loss train the world model.")
    repval_grad: bool = option(True, "Let the replay value loss train the world model.")
    return_rate: float = option(0.01, "Rate of the return range's moving average.")
    return_limit: float = option(1.0, "Smallest return range that advantages are divided by.")
    return_low: float = option(5.0, "Lower percentile of the return range.")
    return_high: float = option(95.0, "Upper percentile of the return range.")
    # Optimiser: LaProp with adaptive gradient clipping.
    lr: float = option(4e-5, "Learning rate.")
    warmup: int = option(1000, "Updates of linear warm-up from 0; the first update changes nothing.")
    schedule: Literal["const", "linear", "cosine"] = option("const", "After the warm-up: const, linear or cosine.")
    anneal: int = option(0, "Updates at which a linear or cosine schedule reaches a tenth of lr.")
    hold: int = option(0, "Updates for which lr stays up before a linear or cosine schedule falls (0: the warm-up).")
    agc: float = option(0.3, "Clip each tensor's gradient to this share of the tensor's norm.")
    agc_min: float = option(1e-3, "Tensor norm assumed at least, for the clipping.")
    beta1: float = option(0.9, "Momentum of the normalised gradient.")
    beta2: float = option(0.999, "Decay of the squared gradient.")
    eps: float = option(1e-20, "Added to the root of the squared gradient.")  # DreamerV3 LaProp
    weight_decay: float = option(0.0, "Decoupled decay of weights (not biases or scales) per unit of learning rate.")
