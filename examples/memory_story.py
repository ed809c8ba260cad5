"""Where does an agent keep the cue, and does it act on what it keeps there?  examples/memory_story.py [RUN [OUT]]

A recurrent PPO agent learns MiniGrid-Memory (or RUN is opened). Then: can the cue be read from its memory through the
delay, and does swapping the memory in the middle of the delay, between two worlds that differ in the cue alone, turn
its choice around? Every number stands beside its control.
"""

import sys
import webbrowser
from pathlib import Path

import torch

import torchmem
from torchmem.analysis.fit_probe import fit_probe
from torchmem.envs.tensor_world import TensorWorld
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.report import write_report
from torchmem.studies.memory_swap import swap_memory
from torchmem.surgery.model import Model
from torchmem.training.ppo_loop import learn

DELAY = ["steps_since_cue >= 1", "choice_visible == 0"]
RECIPE = {"head_layers": 1, "value_scale": 2, "value_clip": None, "entropy": 0.04, "recall": 0.1, "recall_width": 20}


def train(seed: int = 0, size: int = 13, steps: int = 6_000_000) -> Model:
    """What `train.py preset=ppo_memory` does, in one process. Ends early once 97 % of 2,000 episodes succeed."""
    # view 3 is strict: no pose shows cue and choice at once
    worlds = TensorWorld("minigrid_memory", {"size": size, "view": 3, "obs": "symbolic_onehot"}, 512, seed=seed)
    torch.manual_seed(seed)
    agent, won = PPOAgent(worlds.spec, PPOConfig(**RECIPE)), []

    def solved(progress) -> bool:
        won.extend(total > 0 for _, total, _ in progress.episodes)
        return len(won) > 2000 and sum(won[-2000:]) >= 0.97 * 2000

    learn(agent, worlds, steps, length=16, batch=64, seed=seed, stop=solved)
    print(f"trained: {sum(won[-2000:]) / len(won[-2000:]):.3f} of the last episodes succeed")
    return Model(agent)


def story(model: Model, folder: Path, episodes: int = 200, pairs: int = 200) -> dict:
    recording = torchmem.record(model, sites=["memory"], episodes=episodes, seed=1)
    probe = fit_probe(recording, "memory", "cue_type", by="steps_since_cue", where=DELAY)
    print(probe.summary())
    swap = swap_memory(model, pairs=pairs, seed=2)
    print(swap.summary())
    for name, result in {"probe": probe, "swap": swap}.items():
        result.save(folder / name, overwrite=True)  # numbers, provenance and figure.png
    write_report(folder / "report.html", "What this agent remembers", {
        "Can the cue be read from its memory?": probe, "Does it act on what it keeps there?": swap,
    })
    return {"probe": probe, "swap": swap}


if __name__ == "__main__":
    opened = torchmem.load(sys.argv[1]) if len(sys.argv) > 1 else train()
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/memory_story")
    story(opened, out)
    print(f"report: {out / 'report.html'}")
    webbrowser.open((out / "report.html").resolve().as_uri())  # does nothing where there is no browser
