"""Train an agent: `python train.py agent=dreamer env=memory_maze preset=laptop`; `--help` lists every field."""

from __future__ import annotations

import logging
import sys

from torchmem.training.config import ConfigError, compose, sweep
from torchmem.training.config_help import help_text


def main(words: list[str]) -> int:
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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
