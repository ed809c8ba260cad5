"""Training commands without the seconds of import: a process that has imported everything forks one child for each.

    with Forker() as forker:
        forker.start(words, errors=path, save_at=[30], kill_at=50)
        os.kill(forker.pid, signal.SIGKILL)
        code = forker.wait()
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Forker:
    """The side of the test. One command at a time."""

    def __enter__(self) -> Forker:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forker"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()

    def start(self, words: list[str], errors: Path, **hooks: Any) -> None:
        """Run `main(words)` in a new process, its stderr appended to a file. hooks: see `child`."""
        self._server.stdin.write(json.dumps([words, str(errors), hooks]) + "\n")
        self.pid = int(self._server.stdout.readline())

    def wait(self) -> int:
        """The exit code; negative: the signal."""
        return int(self._server.stdout.readline())

    def run(self, words: list[str], errors: Path, **hooks: Any) -> int:
        self.start(words, errors, **hooks)
        return self.wait()

    @property
    def ended(self) -> bool:
        return bool(select.select([self._server.stdout], [], [], 0)[0])


def child(words: list[str], save_at: tuple[int, ...] = (), kill_at: int = 0, story: str = "") -> int:
    """One command. save_at: agent steps with a snapshot. kill_at: agent step of a kill -9, in the middle of a step.

    story: file that gets one line per update (all metrics) and per collected step (latents and actions), exactly.
    """
    import hashlib

    import numpy as np

    from torchmem.training.command import main
    from torchmem.training.experiment import Experiment
    from torchmem.training.sitting import Sitting

    collect, learn, ladder = Experiment.collect, Experiment.learn, Sitting.ladder

    def tell(name: str, numbers: str) -> None:
        if story:
            with open(story, "a") as file:
                file.write(f"{name} {numbers}\n")

    def collect_and_tell(self):
        ended = collect(self)
        arrays = [*self.collector.carry, *self.collector.actions.values()]
        tell(f"step{self.clock.agent_steps}", " ".join(hashlib.md5(np.asarray(a)).hexdigest() for a in arrays))
        return ended

    def learn_and_tell(self):
        metrics = learn(self)
        numbers = " ".join(f"{name}={float(value).hex()}" for name, value in sorted(metrics.items()))
        tell(f"update{self.clock.updates}", numbers)
        if kill_at and self.clock.agent_steps >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return metrics

    def end_of_iteration(self, agent_steps):
        if agent_steps in save_at:
            self.save()
        ladder(self, agent_steps)

    Experiment.collect, Experiment.learn, Sitting.ladder = collect_and_tell, learn_and_tell, end_of_iteration
    try:
        return main(words)
    except SystemExit as leaving:
        return leaving.code


def serve() -> None:
    import lightning.fabric
    import minigrid

    import torchmem.training.loop

    assert lightning.fabric and minigrid and torchmem.training.loop
    for line in sys.stdin:
        words, errors, hooks = json.loads(line)
        pid = os.fork()
        if not pid:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
            os.dup2(2, 1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = 70
            try:
                code = child(words, **hooks)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
