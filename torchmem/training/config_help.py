"""The text of `python train.py --help`: every field with its value, type and one sentence."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import Any

from torchmem.training.config import GROUPS, options
from torchmem.training.run_config import RunConfig
from torchmem.training.typed import documented

MEANING = {
    "agent": "who learns",
    "env": "where",
    "size": "how large the agent is",
    "trainer": "on what hardware",
    "preset": "a set of changes that belong together",
}


def help_text(config: RunConfig, width: int | None = None) -> str:
    """What can be chosen, and every field with its value in `config`. width: columns; None: the terminal's."""
    width = width or min(shutil.get_terminal_size((110, 24)).columns, 140)
    lines = [
        "python train.py [group=option ...] [field=value ...]",
        "",
        "  python train.py agent=dreamer env=memory_maze preset=laptop",
        "  python train.py env=minigrid_memory env.size=7 agent.lr=1e-4 seed=3 logdir=runs/mine",
        "  python train.py --multirun env=dummy seed=1,2,3      one run after the other",
        "  python train.py --help env=dummy                     the fields of another choice",
        "",
        "Groups (the option in [brackets] is the one shown below)",
    ]
    for group in GROUPS:
        names = " ".join(f"[{n}]" if n == config.groups[group] else n for n in options(group))
        first, *more = textwrap.wrap(f"{names}   ({MEANING[group]})", width - 12)
        lines += [f"  {group + '=':<10}{first}", *(" " * 12 + line for line in more)]
    sections = [
        ("Fields of the run", RunConfig, "", config),
        (
            f"Fields of agent={config.groups['agent']}, size={config.groups['size']}",
            type(config.agent),
            "agent.",
            config.agent,
        ),
        (f"Fields of env={config.groups['env']}", type(config.env), "env.", config.env),
    ]
    for title, kind, prefix, values in sections:
        lines += ["", f"{title} (value shown; * differs from the dataclass's default)"]
        defaults = {name: value for name, _, value, _ in documented(kind, prefix)}
        for name, described, value, sentence in documented(kind, prefix, values):
            changed = "*" if value != defaults[name] and name != "logdir" else " "
            lines += _row(f"{changed} {name}={_value(value)}", f"{sentence} ({described})", width)
    lines += [
        "",
        "The later wins: size < agent < env < trainer < preset < command line. devices=N means trainer.devices=N.",
    ]
    return "\n".join(lines) + "\n"


def _row(left: str, right: str, width: int) -> list[str]:
    column = 38
    wrapped = textwrap.wrap(right, max(width - column, 30))
    if len(left) >= column:
        return [left, *(" " * column + w for w in wrapped)]
    return [f"{left:<{column}}{wrapped[0]}", *(" " * column + w for w in wrapped[1:])]


def _value(value: Any) -> str:
    """As it would be typed on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))
