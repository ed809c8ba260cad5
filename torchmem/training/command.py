"""The command line of training: words in, exit code out."""

from __future__ import annotations

import logging
import signal
import sys

from torchmem.errors import TorchmemError
from torchmem.training.config import ConfigError, compose, sweep
from torchmem.training.config_help import help_text


def main(words: list[str]) -> int:
    """Train as `words` say (key=value, --help, --multirun). 0: done, 1: a fault told in one message, 2: bad words,
    130: ctrl-C."""
    flags, words = {w for w in words if w.startswith("-")}, [w for w in words if not w.startswith("-")]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if unknown := flags - {"-h", "--help", "-m", "--multirun"}:
            raise ConfigError(
                f"unknown flag {sorted(unknown)[0]}; there are --help and --multirun, all else is key=value"
            )
        if flags & {"-h", "--help"}:
            sys.stdout.write(help_text(compose(words)))
            return 0
        runs = sweep(words) if flags & {"-m", "--multirun"} else [compose(words)]  # all are checked before one starts
        from torchmem.training.loop import run  # after the checks: a misspelt key is answered at once

        for config in runs:
            run(config)
    except ConfigError as error:
        sys.stderr.write(f"config: {error}\n")
        return 2
    except (TorchmemError, OSError) as error:  # a full disk, a dead world, a NaN loss, a torn file: told in one message
        logging.getLogger("torchmem").debug("", exc_info=True)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    except KeyboardInterrupt:  # before there was anything to save, or the second ctrl-C
        sys.stderr.write("stopped without saving; the same command goes on from the last snapshot, if there is one\n")
        return 128 + signal.SIGINT
    return 0

