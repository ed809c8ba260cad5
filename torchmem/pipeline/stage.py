"""A stage: a command line with `${names}` in it, its options as words, and what the names stand for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torchmem.errors import TorchmemError

NAME = re.compile(r"\$(\$\{)|\$\{([^{}]*)\}")  # $${ stands for ${ itself, as a shell needs it
TRAIN = "train"  # its words are key=value, and the same command goes on where it was stopped
OUT, SEEDS = "out", "seeds"


class PipelineError(TorchmemError):
    """A pipeline cannot run; the message names the file and line, or the stage, and the way out."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command and its output folder. Words and options still hold their `${names}`."""

    name: str
    command: tuple[str, ...]  # without a leading "torchmem"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resume: bool = False  # an unfinished output stays for the next attempt
    slurm: Mapping[str, str] = dataclasses.field(default_factory=dict)  # sbatch option -> value
    ours: bool = True  # a verb of torchmem, not another program
    needs: tuple[str, ...] = ()  # stages it reads from

    def template(self) -> list[str]:
        """Command and options as words, names not yet replaced."""
        return [*self.command, *option_words(self.options, train=self.ours and self.command[0] == TRAIN)]

    def words(self, value: Callable[[str], str]) -> list[str]:
        """The command line, each name replaced by `value(name)`."""
        return [render(word, value) for word in self.template()]

    def names(self) -> list[str]:
        """All `${names}` of command and options, each once, in order."""
        return list(dict.fromkeys(name for word in self.template() for name in names_in(word)))


def names_in(word: str) -> list[str]:
    return [found[2] for found in NAME.finditer(word) if found[2] is not None]


def render(word: str, value: Callable[[str], str]) -> str:
    return NAME.sub(lambda found: "${" if found[2] is None else value(found[2]), word)


def option_words(options: Mapping[str, Any], *, train: bool) -> list[str]:
    """Options as a command takes them: `--key value`, or `key=value` for training. Raises PipelineError naming one.

    `--key value`: true is the flag alone, false leaves it out, a list gives several values. Training: nested mappings
    are dotted names, null is null.
    """
    if train:
        return [f"{name}={_hydra(name, value)}" for name, value in _flat(options)]
    words = []
    for key, value in options.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, Mapping) or value is None:
            raise PipelineError(f"option {key}: give a value or a list; to leave it out, leave the line out")
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list):
            words += [flag, *(str(one) for one in value)]
        else:
            words += [flag, str(value)]
    return words


def _flat(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _hydra(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(_hydra(name, one) for one in value) + "]"
    return str(value)
