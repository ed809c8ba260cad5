"""Sizes of the DreamerV3 variant with one gated recurrent unit, as NM512/dreamerv3-torch has it; defaults are its."""

from __future__ import annotations

import dataclasses

from torchmem.options import option


@dataclasses.dataclass
class GRUDreamerConfig:
    """Architecture only: agents of this kind are imported and looked into, not trained here."""

    name: str = option("gru_dreamer", "Which agent this is.")
    deter: int = option(512, "Units of the recurrence.")
    hidden: int = option(512, "Units of the layers around it.")
    stoch: int = option(32, "Categorical variables of the stochastic state.")
    classes: int = option(32, "Classes of each.")
    units: int = option(512, "Units of each hidden layer of the heads.")
    actor_layers: int = option(2, "Hidden layers of the actor.")
    critic_layers: int = option(2, "Hidden layers of the critic.")
    reward_layers: int = option(2, "Hidden layers of the reward head.")
    cont_layers: int = option(2, "Hidden layers of the continuation head.")
    depth: int = option(32, "Channels of the first convolution; each further one doubles them.")
    kernel: int = option(4, "Side of the convolutions.")
    minres: int = option(4, "Side of the smallest map.")
    vector_layers: int = option(5, "Layers of the encoder and decoder of vectors.")
    vector_units: int = option(1024, "Units of each.")
    decode_image: bool = option(True, "Whether the decoder predicts images.")
    decode_vector: bool = option(True, "Whether the decoder predicts vectors.")
    sigmoid_image: bool = option(False, "Predicted images through a sigmoid; false: plus 0.5.")
    learned_start: bool = option(True, "Episodes start from a learned state; false: zeros.")
    unimix: float = option(0.01, "Uniform share mixed into the stochastic state.")
    actor_unimix: float = option(0.01, "Uniform share mixed into a discrete policy.")
    min_std: float = option(0.1, "Least deviation of a continuous policy.")
    max_std: float = option(1.0, "Largest deviation of a continuous policy.")
    bins: int = option(255, "Bins of the two-hot reward and value, even in symlog from -20 to 20.")
