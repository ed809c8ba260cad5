"""What an update of a simulator spends on its data: drawing from replay against loss, gradient and optimiser.

    python benchmarks/simulator_data.py RECORDING AGENT [KEY=VALUE ...]

Prints milliseconds of CPU per update for both, alternating, and the share of the data. The limit stated: data must cost
less than a tenth, so that the cores (or the GPU) set the pace and not the files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from torchmem.training.config import compose
from torchmem.training.processes import Processes
from torchmem.training.simulator_experiment import SimulatorExperiment

UPDATES = 5


def spent(function: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    out = function()
    return time.process_time() - begin, out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recording", metavar="RECORDING", help="of the agent, with observations")
    parser.add_argument("agent", metavar="AGENT", help="its run or agent folder")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as batch=4 length=17")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = ["env=recording", f"env.path={given.recording}", f"env.agent={given.agent}"]
        config = compose(["agent=simulator", *world, "trainer=cpu", f"logdir={folder}/run", *given.settings])
        x = SimulatorExperiment(config, Processes(), torch.device("cpu"))
        filling, _ = spent(lambda: x.open_replay("benchmark"))
        loading, updating = [], []
        for _ in range(UPDATES):
            seconds, batch = spent(lambda: x.replay.sample(x.batch))
            loading.append(seconds)
            del batch["index"]
            updating.append(spent(lambda: x.learner.update(batch))[0])  # noqa: B023 (called at once)
        x.close()
    load, update = statistics.median(loading) * 1e3, statistics.median(updating) * 1e3
    rows = x.recording.episodes["length"][x.episodes].sum()
    lines = [
        f"{rows} steps into replay, the agent's pass over them included: {filling:.1f} s, {rows / filling:.0f} steps/s",
        f"update on {x.batch} x {config.length + 1} rows: data {load:.1f} ms, learning {update:.0f} ms of CPU; "
        f"share of data {load / (load + update):.2%} (limit 10%)",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
