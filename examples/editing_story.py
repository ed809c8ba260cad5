"""Can the memory be rewritten where it lies?  examples/editing_story.py RUN CIRCUIT [OUT]

CIRCUIT is the `circuit.safetensors` of examples/circuit_story.py. The agent is taught to go the wrong way after one of
the cues, and to stay right after the other: in the circuit alone, in as many random weights, in all weights, and so on.
Then the change is taken back, and every bit must be as before.
"""

import sys
from pathlib import Path

import torchmem
from torchmem.studies.behaviour_edits import edits_of
from torchmem.studies.editing import study_editing
from torchmem.surgery.weight_mask import WeightMask


def story(run: Path, circuit: Path, folder: Path, edits: int | None = None, **settings) -> dict:
    model = torchmem.load(run)
    wanted = list(edits_of(model.spec).values())[:edits]
    mask = WeightMask.load(circuit, model.agent)
    found = study_editing(model, folder, mask, edits=wanted, **settings)
    for name, result in found.items():
        print(f"{name}\n{result.summary()}\n")
    return found


if __name__ == "__main__":
    out = Path(sys.argv[3] if len(sys.argv) > 3 else "runs/editing_story")
    story(Path(sys.argv[1]), Path(sys.argv[2]), out)
    print(f"report: {out / 'report.html'}")
