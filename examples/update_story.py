"""What did one change of the reward write into the weights?  examples/update_story.py [OUT]

A lander learns, then trains on with fuel five times as dear; beside it a null trains on with nothing changed. The
difference of the weights is taken away and added on at several scales. Does fuel alone answer, and more than to the
null's difference? Last, a single gradient step: which term of the loss moved which module?
"""

import sys
from pathlib import Path

from torchmem.studies.updates.branch import begin, train
from torchmem.studies.updates.gradient_step import isolate_step
from torchmem.studies.updates.isolate import isolate_update

WORDS = "preset=lunar_lander workers=0".split()
DEAR = ["env.reward_fuel=5"]


def story(folder: Path, words: list[str] = WORDS, steps: int = 400_000, more: int = 100_000, **settings) -> dict:
    start = train(words, begin(words, 0), steps, 0)
    update = isolate_update(start, words, DEAR, more, term="fuel", folder=folder / "parts", **settings)
    print(update.result.summary())
    step = isolate_step(start, words)
    print(step.shares.summary())
    for name, result in {"update": update.result, "step": step.shares}.items():
        result.save(folder / name, overwrite=True)  # numbers, provenance and figure.png
    return {"update": update.result, "step": step.shares}


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/update_story")
    story(out)
    print(f"figures and numbers: {out}")
