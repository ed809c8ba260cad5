"""Canonical names of sites: the same word for the same role in every agent, and one sentence for each.

An agent's sites are called by their module paths. Where another agent has the same thing under another path, the
shared word is an alias: both names are the same place.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping

from torchmem.types import Site

# shared word -> paths that may mean it; the first that the agent has
ROLES: dict[str, tuple[str, ...]] = {
    "memory": ("dynamics.core.state", "dynamics.deter", "core.state"),
    "core.state": ("dynamics.core.state", "dynamics.deter"),
}
# shared prefix -> the prefix of paths that it stands for
PREFIXES: dict[str, str] = {
    "core": "dynamics.core",
    "s5": "dynamics.core.layers",
    "actor": "behaviour.policy",
    "critic": "behaviour.value",
}

# path pattern -> meaning; the first that matches counts
MEANINGS: dict[str, str] = {
    # what carries memory
    "dynamics.core.state": "States of all S5 layers after the step, layer by layer: re and im of each channel.",
    "*core.layers.*.state": "State of one S5 layer after the step, re and im of each channel; its output reads this.",
    "*core.layers.*.out": "Output of one S5 layer before its gate.",
    "*core.layers.*.gate": "Gate of one S5 layer, before the sigmoid.",
    "*core.layers.*.norm": "What one S5 layer hands to the next, after residual and norm (prenorm: before it).",
    "dynamics.input": "The last z and action, encoded: what the S5 layers take in.",
    "dynamics.output": "The S5 layers' output, projected; h is its SiLU.",
    "dynamics.deter": "Deterministic state h after the step: the memory itself, or with S5 layers what they say of it.",
    "core.state": "State after the step, which actor and critic read and a recurrent core carries on.",
    "core.cell": "Cell state of the LSTM: the slower part of its memory, carried beside core.state.",
    "*core.reset": "Reset gate, 0 to 1: share of the old state that the candidate sees.",
    "*core.candidate": "Candidate state, -1 to 1: what is to be written.",
    "*core.update": "Update gate, 0 to 1: share of the state that the candidate replaces at this step.",
    "core.write": "Input gate, 0 to 1: share of the candidate that is written into the cell.",
    "core.keep": "Forget gate, 0 to 1: share of the cell that is kept.",
    "core.show": "Output gate, 0 to 1: share of the cell that the state shows.",
    "core.linear": "The layer in place of a core of an agent without memory, before its nonlinearity.",
    "dynamics.core.action_in": "Features of the last action, of zeros where an episode begins.",
    "dynamics.core.deter_in": "Features of h that every block of the recurrence sees.",
    "dynamics.core.stoch_in": "Features of the last z, input of the recurrence.",
    "dynamics.core.hidden.*": "Block layer of the recurrence, before its norm.",
    "dynamics.core.hidden_norm.*": "Block layer of the recurrence after its norm, before SiLU.",
    "dynamics.core.gates": "Pre-activations of the three gates; each block holds its own thirds (see core.reset).",
    "dynamics.core": "New h as the recurrence computes it; dynamics.deter is the same value.",
    # what is inferred
    "dynamics.stoch": "Stochastic state z: S one-hot samples of K classes (of the posterior, or imagined).",
    "dynamics.posterior": "Raw logits of z given h and the observation, before the uniform share is mixed in.",
    "dynamics.posterior.*": "Inside the posterior.",
    "dynamics.prior": "Raw logits of z given h alone: what the agent expects to see.",
    "dynamics.prior.*": "Inside the prior.",
    # what is seen
    "encoder": "Everything the encoder hands to the recurrence: vectors first, then images.",
    "encoder.mlp": "Vector observations, encoded.",
    "encoder.mlp.*": "Layer of the vector encoder.",
    "encoder.cnn": "Image observations, encoded.",
    "encoder.cnn.*": "Stage of the image encoder, channels last.",
    # what is done and expected
    "actor.mlp": "Last hidden layer of the actor.",
    "actor.mlp.*": "Hidden layer of the actor.",
    "actor.out.*": "Output for one action key: logits, or what mean and deviation are made from.",
    "critic": "The critic's output: the value, or logits over the bins of a two-hot value.",
    "critic.mlp": "Last hidden layer of the critic.",
    "critic.mlp.*": "Hidden layer of the critic.",
    "critic.out": "Output layer of the critic.",
    # what is predicted
    "reward": "Logits over the bins of the predicted reward.",
    "reward.*": "Inside the reward head.",
    "cont": "Logit of the probability that the episode goes on.",
    "cont.*": "Inside the continuation head.",
    "decoder.mlp*": "Layer of the vector decoder.",
    "decoder.heads.*": "Predicted value of one observation key: symlog mean, or logits of an integer.",
    "decoder.cnn": "Predicted image, 0 to 1.",
    "decoder.cnn.*": "Stage of the image decoder, channels last.",
}


def canonical(found: Mapping[str, Site]) -> dict[str, Site]:
    """Sites by path, and under every shared word that applies to this agent. A path never gives way to an alias."""
    out = dict(found)
    for name, paths in ROLES.items():
        path = next((path for path in paths if path in found), None)
        if path is not None and name not in out:
            out[name] = dataclasses.replace(found[path], name=name)
    for prefix, home in PREFIXES.items():
        for path, site in found.items():
            name = prefix + path.removeprefix(home)
            if _under(path, home) and name not in out:
                out[name] = dataclasses.replace(site, name=name)
    return out


def aliases(sites: Mapping[str, Site], path: str) -> list[str]:
    """The other names of the site at `path`."""
    return [name for name, site in sites.items() if site.path == path and name != path]


def meaning(path: str) -> str | None:
    """One sentence on the site at a module path; None where this file knows none."""
    shared = next((p + path.removeprefix(h) for p, h in PREFIXES.items() if _under(path, h)), path)
    for pattern, sentence in MEANINGS.items():
        if fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(shared, pattern):
            return sentence
    return None


def _under(path: str, home: str) -> bool:
    return path == home or path.startswith(home + ".")
