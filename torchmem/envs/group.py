"""Where a Host lives: in this process (LocalGroup) or in a worker (WorkerGroup). Both answer `submit` with `result`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from torchmem.envs.host import Host
from torchmem.errors import TorchmemError

Arguments = tuple[str, Mapping[str, Any], int]  # of Host
PATIENCE_S = 5.0  # how long a worker may take to leave when asked


class GroupFailed(RuntimeError):
    """A world raised or its process died; the message is its traceback. The group must be restarted or closed."""


class LocalGroup:
    """A Host in this process."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments: Arguments = arguments  # type: ignore[assignment]
        self._host: Host | None = None
        self._call: tuple[str, tuple[Any, ...]] = ("", ())

    def start(self) -> None:
        """Begin building the worlds; `result` tells how it went."""
        self._host, self._call = None, ("", ())

    def submit(self, method: str, *arguments: Any) -> None:
        """Ask the Host to call one of its methods."""
        self._call = (method, arguments)

    def result(self) -> Any:
        """What the call returned. Raises GroupFailed."""
        method, arguments = self._call
        try:
            if self._host is None:
                self._host = Host(*self._arguments)
            return getattr(self._host, method)(*arguments) if method else None
        except Exception as error:
            raise GroupFailed(complaint(error)) from error

    def close(self) -> None:
        if self._host is not None:
            self._host.close()
        self._host = None


class WorkerGroup:
    """A Host in a process of its own, reached over a pipe.

    The process comes from a fork server, so it inherits no GL context, no thread and no CUDA state of this one, and a
    new one starts quickly. It ignores SIGINT and SIGTERM: a signal sent to a whole job must leave the worlds alive
    until their state is saved. It leaves when asked, when killed, or when this process is gone.
    """

    def __init__(self, *arguments: Any) -> None:
        self._arguments: Arguments = arguments  # type: ignore[assignment]
        self._context = multiprocessing.get_context("forkserver")
        self._process: Any = None
        self._pipe: Any = None  # a Connection while started

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Begin building the worlds (in a fresh process); `result` tells how it went."""
        self.close()
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=serve, args=(theirs, self._arguments, dict(os.environ)), daemon=True, name="torchmem-worlds")
        self._process.start()
        theirs.close()  # else the end of the worker would not end the pipe

    def submit(self, method: str, *arguments: Any) -> None:
        """Ask the worker's Host to call one of its methods."""
        try:
            self._pipe.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError):
            pass  # `result` reports the death

    def result(self) -> Any:
        """What the call returned. Raises GroupFailed."""
        try:
            ok, value = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(PATIENCE_S)
            end = f"died with exit code {self._process.exitcode}"
            raise GroupFailed(f"the worker (pid {self._process.pid}) {end}") from error
        if not ok:
            raise GroupFailed(value)
        return value

    def close(self) -> None:
        if self._process is None:
            return
        self._pipe.close()  # an idle worker leaves at once
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._process = self._pipe = None


def complaint(error: Exception) -> str:
    """What is told of a failure: the traceback, unless the message is meant for people."""
    return str(error) if isinstance(error, TorchmemError) else traceback.format_exc()


def serve(pipe: Connection, arguments: Arguments, environ: dict[str, str]) -> None:
    """The worker's life: build a Host, then answer calls until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.update(environ)  # the fork server may have started before these were set
    logging.getLogger("torchmem").setLevel(logging.ERROR)  # the parent has said it once
    host = None
    try:
        host = Host(*arguments)
        pipe.send((True, None))
        while True:
            method, rest = pipe.recv()
            pipe.send((True, getattr(host, method)(*rest)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent closed the pipe, or is gone
    except Exception as error:
        pipe.send((False, complaint(error)))
    finally:
        if host is not None:
            host.close()
