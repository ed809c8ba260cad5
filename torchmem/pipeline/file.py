"""pipeline.yaml as stages in the order in which they can run. Everything wrong in it is told at once, with its line."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from torchmem.pipeline.stage import OUT, SEEDS, TRAIN, PipelineError, Stage

KEYS = ("folder", "cache", "code", "seeds", "inputs", "slurm", "stages")
STAGE_KEYS = ("command", "options", "resume", "slurm")
CODE = ("source", "git", "ignore")
WORD = re.compile(r"[A-Za-z][\w-]*")
RESERVED = (OUT, SEEDS, "cache", "manifest")


@dataclasses.dataclass(frozen=True)
class Verbs:
    """What the program knows: the names of its verbs, and what is wrong with the words of one (None: nothing)."""

    names: Sequence[str]
    fault: Callable[[list[str]], str | None]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A checked pipeline file. Paths are absolute."""

    path: Path
    digest: str  # sha256 of the file
    folder: Path  # of this pipeline: manifest.json, and a link to each stage's output
    cache: Path  # of the outputs; pipelines may share one
    code: str  # what of the code is part of a key: source, git, ignore
    seeds: Mapping[str, int]
    inputs: Mapping[str, Path]  # files and folders that no stage makes
    stages: Mapping[str, Stage]  # in an order in which they can run


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'none'}"


def read_pipeline(
    path: str | Path, verbs: Verbs, *, folder: str | None = None, cache: str | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Pipeline:  # fmt: skip
    """Read and check a file. folder, cache, seeds: replace what it says. Raises PipelineError with every fault."""
    path = Path(path).absolute()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    reader = _Reader(path, text, verbs)
    found = reader.read(folder, cache, seeds or {})
    if reader.faults:
        raise PipelineError("\n".join(reader.faults))
    return found


class _Reader:
    def __init__(self, path: Path, text: str, verbs: Verbs) -> None:
        self.path, self.verbs, self.faults = path, verbs, []
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            self.data = YAML(typ="safe", pure=True).load(text)
            self.marks = YAML(typ="rt").load(text)  # the same with the places of its keys
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise PipelineError(f"{path}{place}: {error.problem or error.context}") from error
        except YAMLError as error:
            raise PipelineError(f"{path} is not YAML: {error}") from error

    def blame(self, place: tuple[str, ...], text: str) -> None:
        """Note a fault at the key `place`, such as ("stages", "train", "options")."""
        line = column = 0
        node = self.marks
        for key in place:
            if not isinstance(node, Mapping) or key not in node:
                break
            line, column = node.lc.key(key)  # type: ignore[attr-defined]
            node = node[key]
        self.faults.append(f"{self.path}:{line + 1}:{column + 1}: {text}")

    def mapping(self, value: Any, place: tuple[str, ...], known: Sequence[str] | None = None) -> dict[str, Any]:
        """`value` if it is a mapping with names as keys (all of them `known`); otherwise an empty one and a fault."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.blame(place, f"{place[-1] if place else 'the file'} must be a mapping (key: value)")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.blame(place, f"{key!r} is a key, but keys must be words: quote it")
            elif known is not None and key not in known:
                self.blame((*place, key), f"unknown key {key!r}{nearest(key, known)}")
        return {key: one for key, one in value.items() if isinstance(key, str)}

    def read(self, folder: str | None, cache: str | None, seeds: Mapping[str, int]) -> Pipeline:
        top = self.mapping(self.data, (), KEYS)
        for key in ("folder", "cache"):
            if key in top and not isinstance(top[key], str):
                self.blame((key,), f"{key} must be a path")
        code = top.get("code", CODE[0])
        if code not in CODE:
            self.blame(("code",), f"code: {code!r} is not one of {', '.join(CODE)}")
        here = Path(folder or str(top.get("folder") or Path("runs", self.path.stem))).absolute()
        given = self.seeds(top.get("seeds"), seeds)
        inputs = {}
        for name, value in self.mapping(top.get("inputs"), ("inputs",)).items():
            place = ("inputs", name)
            if not isinstance(value, str):
                self.blame(place, f"input {name} must be a path")
                continue
            inputs[name] = self.path.parent / Path(value).expanduser()
            if not inputs[name].exists():
                self.blame(place, f"input {name}: {inputs[name]} does not exist")
        stages = self.mapping(top.get("stages"), ("stages",))
        if not stages and not self.faults:
            self.blame((), "a pipeline needs stages: {name: command line}")
        for name in (*stages, *inputs):
            place = ("stages" if name in stages else "inputs", name)
            if not WORD.fullmatch(name) or name in RESERVED:
                self.blame(place, f"{name!r} cannot be a name: letters, digits, - and _, and not {', '.join(RESERVED)}")
            if name in stages and name in inputs:
                self.blame(place, f"{name!r} is a stage and an input: give one of them another name")
        known = (*stages, *inputs)
        wide = self.slurm(top.get("slurm"), ("slurm",))
        made = {name: self.stage(name, value, known, stages, given, wide) for name, value in stages.items()}
        return Pipeline(
            self.path, self.digest, here, Path(cache or str(top.get("cache") or here / "cache")).absolute(), str(code),
            given, inputs, self.ordered({name: stage for name, stage in made.items() if stage}),
        )  # fmt: skip

    def seeds(self, value: Any, given: Mapping[str, int]) -> dict[str, int]:
        found = self.mapping(value, (SEEDS,))
        for name, seed in found.items():
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                self.blame((SEEDS, name), f"seed {name} must be a whole number from 0, got {seed!r}")
        for name in given:
            if name not in found:
                self.blame((SEEDS,), f"--seed {name}: there is no such seed{nearest(name, found)}")
        return {**found, **given}

    def slurm(self, value: Any, place: tuple[str, ...]) -> dict[str, str]:
        found = {}
        for key, one in self.mapping(value, place).items():
            if not re.fullmatch(r"[a-z][a-z-]*", key):
                self.blame((*place, key), f"{key!r} is no option of sbatch: write it without dashes in front")
            elif not isinstance(one, str | int) or isinstance(one, bool) or "\n" in str(one):
                self.blame((*place, key), f"{key} must be one line of text or a whole number; quote times: '01:00:00'")
            elif key in ("dependency", "job-name", "chdir", "parsable", "array"):
                self.blame((*place, key), f"{key} is set by torchmem")
            else:
                found[key] = str(one)
        return found

    def stage(
        self, name: str, value: Any, known: Sequence[str], stages: Mapping[str, Any], seeds: Mapping[str, int],
        wide: Mapping[str, str],
    ) -> Stage | None:  # fmt: skip
        place = ("stages", name)
        before = len(self.faults)
        if isinstance(value, str | list):
            value = {"command": value}
        told = self.mapping(value, place, STAGE_KEYS)
        if len(self.faults) > before:
            return None
        command = told.get("command")
        if isinstance(command, str):
            try:
                command = shlex.split(command)
            except ValueError as error:
                self.blame((*place, "command"), f"command of {name}: {error}")
                return None
        if not isinstance(command, list) or not command or not all(isinstance(w, str | int | float) for w in command):
            self.blame((*place, "command"), f"stage {name} needs a command: one line, or a list of words")
            return None
        words = [str(word) for word in command]
        words = words[1:] if words[0] == "torchmem" and words[1:] else words
        ours = words[0] in self.verbs.names
        if not ours and shutil.which(words[0]) is None:
            self.blame((*place, "command"), f"no command {words[0]!r}{nearest(words[0], self.verbs.names)}")
        resume = told.get("resume", ours and words[0] == TRAIN)
        if not isinstance(resume, bool):
            self.blame((*place, "resume"), "resume must be true or false")
        made = Stage(
            name, tuple(words), self.mapping(told.get("options"), (*place, "options")), bool(resume),
            {**wide, **self.slurm(told.get("slurm"), (*place, "slurm"))}, ours,
        )  # fmt: skip
        try:
            names = made.names()
        except PipelineError as error:
            self.blame((*place, "options"), f"stage {name}: {error}")
            return None
        for one in names:
            self.reference(made, one, known, seeds)
        if OUT not in {one.partition("/")[0] for one in names}:
            self.blame(place, f"stage {name} must be told where to write: put ${{out}} into its command or options")
        if ours and len(self.faults) == before:
            wrong = self.verbs.fault(made.words(lambda one: str(seeds.get(one.partition(".")[2], f"/{one}"))))
            if wrong:
                self.blame(place, f"stage {name}: {wrong}")
        needs = dict.fromkeys(one.partition("/")[0] for one in names)
        return dataclasses.replace(made, needs=tuple(one for one in needs if one in stages))

    def reference(self, stage: Stage, name: str, known: Sequence[str], seeds: Mapping[str, int]) -> None:
        """Note a fault where `${name}` means nothing."""
        place = ("stages", stage.name, "command")
        for key, value in stage.options.items():
            if f"${{{name}}}" in str(value):
                place = ("stages", stage.name, "options", key)
        first, _, rest = name.partition("/")
        group, _, seed = name.partition(".")
        if group == SEEDS:
            if seed not in seeds:
                self.blame(place, f"${{{name}}}: there is no seed {seed!r}{nearest(seed, seeds)}")
        elif first == stage.name:
            self.blame(place, f"stage {stage.name} cannot read its own output: what it writes is ${{out}}")
        elif first != OUT and first not in known:
            others = [one for one in known if one != stage.name]
            self.blame(place, f"${{{name}}}: there is no stage or input {first!r}{nearest(first, others)}")
        elif ".." in rest.split("/") or rest.startswith("/"):
            self.blame(place, f"${{{name}}} leaves the folder of {first}")

    def ordered(self, stages: Mapping[str, Stage]) -> dict[str, Stage]:
        """Each stage after those it needs. A cycle is a fault."""
        order: dict[str, Stage] = {}
        while len(order) < len(stages):
            ready = [s for n, s in stages.items() if n not in order and not (set(s.needs) & stages.keys()) - set(order)]
            if not ready:
                self.blame_cycle({n: s for n, s in stages.items() if n not in order})
                return dict(stages)
            order[ready[0].name] = ready[0]
        return order

    def blame_cycle(self, rest: Mapping[str, Stage]) -> None:
        way = [next(iter(rest))]
        while way[-1] not in way[:-1]:
            way.append(next(n for n in rest[way[-1]].needs if n in rest))
        ring = way[way.index(way[-1]) :]
        self.blame(("stages", ring[0]), f"stages wait for each other: {' needs '.join(ring)}")
