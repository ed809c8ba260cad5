"""Which weights make an agent remember, and when did they come about?  examples/circuit_story.py RUN [OUT]

RUN is a recurrent agent of a cue world, best one that kept agents on the way:
    python train.py preset=ppo_memory save.agents_every=50_000 logdir=runs/memory
Does a small part of its weights still solve the world, with all others at zero? Do as many other weights, or the same
search on weights that never learned? And what does that part do in the agents of earlier?
"""

import sys
from pathlib import Path

import torchmem
from torchmem.studies.circuits import study_circuits
from torchmem.studies.development import find_ladder, study_development
from torchmem.surgery.weight_mask import WeightMask


def story(run: Path, folder: Path, episodes: int = 500, **search) -> dict:
    model = torchmem.load(run)
    circuit = study_circuits(model, folder / "circuit", episodes=episodes, **search)["circuit"]
    print(circuit.summary())
    found = {"circuit": circuit}
    if (run / "ladder").is_dir():
        mask = WeightMask.load(folder / "circuit" / "circuit.safetensors", model.agent)
        ladder = find_ladder(run)
        parts = study_development(model, folder / "development", mask, ladder, episodes=episodes, fits=0)
        found["development"] = parts["development"]
        print(found["development"].summary())
    return found


if __name__ == "__main__":
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/circuit_story")
    story(Path(sys.argv[1]), out)
    print(f"reports: {out / 'circuit' / 'report.html'}, {out / 'development' / 'report.html'}")
