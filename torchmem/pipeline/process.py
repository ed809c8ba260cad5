"""One command as a process with a log, which passes on the signals that it is sent, and dies of them in its own way."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """While it is open, signals go to the command that runs (`child`), and the last one is remembered (`number`).

    Training saves a snapshot at ctrl-C, SIGTERM and SIGUSR1; killed outright, it could not.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.child: int | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._pass_on) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _pass_on(self, number: int, frame: object) -> None:
        self.number = number
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, number)

    @contextlib.contextmanager
    def to(self, child: int) -> Iterator[None]:
        self.child = child
        try:
            if self.number is not None:  # it came before there was anybody to tell
                self._pass_on(self.number, None)
            yield
        finally:
            self.child = None


def argv(words: Sequence[str], *, ours: bool) -> list[str]:
    """The process of a stage: a verb of this torchmem, Python as it runs here, or another program."""
    if ours:
        return [sys.executable, "-m", "torchmem.cli", *words]
    return [sys.executable, *words[1:]] if words[0] in ("python", "python3") else list(words)


def run_command(
    command: Sequence[str], log: Path, signals: Signals, keep: Sequence[int]
) -> tuple[int, dict[str, float]]:
    """Run a command with its output added to `log`; returns its exit code (-9: killed by signal 9), and the seconds it
    took: {"seconds": on the wall, "cpu_seconds": of all its processes}.

    keep: file descriptors that stay open in it, such as locks. It gets a session of its own: ctrl-C at a terminal would
    otherwise reach it twice, once from the terminal and once from here.
    """
    began, before = time.monotonic(), _cpu_s()
    with open(log, "ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, pass_fds=tuple(keep),
            start_new_session=True,
        )  # fmt: skip
    with signals.to(process.pid):
        code = process.wait()
    return code, {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(_cpu_s() - before, 1)}


def _cpu_s() -> float:
    """Seconds of processor that this process's commands, ended and waited for, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tail(log: Path, start: int, lines: int = 20) -> str:
    """The last lines of a log, from byte `start` on. A progress bar counts as one line."""
    with open(log, "rb") as file:
        file.seek(max(start, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    rows = [row.rsplit("\r", 1)[-1] for row in text.replace("\r\n", "\n").splitlines() if row.strip()]
    return "\n".join(f"  | {row}" for row in rows[-lines:])
