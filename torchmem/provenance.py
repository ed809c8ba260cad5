"""Where a number comes from: the agent, the settings, the code, the packages, the device, and what was read. A leaf."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Those whose version may change a number.
PACKAGES = (
    "torch", "numpy", "scipy", "scikit-learn", "torchrl", "tensordict", "lightning", "safetensors", "zarr", "nnsight",
    "pynapple", "gymnasium", "minigrid", "crafter", "memory-maze", "dm_control", "mujoco", "popgym", "envpool", "Box2D",
)  # fmt: skip
SOURCES = (".py", ".yaml", ".yml", ".toml", ".sh")  # files not yet under git that belong to the code
NOW = ("torchmem", "commit", "dirty", "diff", "packages", "device", "command", "date")  # of the process that measures


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Enough to make a number again. JSON values only."""

    torchmem: str  # version
    checkpoint: str | None = None  # where the agent was loaded from
    weights: str | None = None  # sha256 of its weights, as in agent.json
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the agent, or of the measurement
    commit: str | None = None  # of the source tree that torchmem ran from; None where it is no git checkout
    dirty: bool | None = None  # that tree had uncommitted changes
    seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)
    edits: tuple[Any, ...] = ()  # a description of each edit that held, in order
    caveats: tuple[str, ...] = ()  # what every summary and figure made from this data must say
    command: str = ""  # the process that did it
    date: str = ""  # ISO 8601, UTC
    diff: str | None = None  # sha256 of the uncommitted changes; None where there are none
    packages: Mapping[str, str] = dataclasses.field(default_factory=dict)  # Python and packages -> version
    device: str = ""  # that torch computed on: cpu, or the name of the GPU
    parents: tuple[str, ...] = ()  # folders of the artefacts this was made from, such as the recording
    home: str | None = dataclasses.field(default=None, compare=False, repr=False)  # the artefact it was read from

    @classmethod
    def here(cls, **known: Any) -> Provenance:
        """What this process can tell by itself (version, git state, packages, command, date), plus `known` fields."""
        from torchmem import __version__

        commit, diff = git_state()
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        dirty = None if commit is None else diff is not None
        told = {"commit": commit, "dirty": dirty, "diff": diff, "packages": packages(), "device": device()}
        return cls(**{"torchmem": __version__, **told, "command": shlex.join(sys.orig_argv), "date": now, **known})

    def again(self, **changes: Any) -> Provenance:
        """The same agent, seeds and edits, measured by this process now: what an analysis gives its result."""
        fresh = Provenance.here()
        now: dict[str, Any] = {name: getattr(fresh, name) for name in NOW}
        parents = (self.home,) if self.home else self.parents
        return dataclasses.replace(self, **{**now, "parents": parents, "home": None, **changes})

    def to_json(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "home"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], home: str | Path | None = None) -> Provenance:
        """home: the artefact whose card this is; what is measured from it (`again`) names it as its parent."""
        lists = {name: tuple(data.get(name, ())) for name in ("edits", "caveats", "parents")}
        return cls(**{**data, **lists, "home": str(Path(home).absolute()) if home else None})


@functools.cache
def git_state() -> tuple[str | None, str | None]:
    """(commit, sha256 of what is not committed or None) of the source tree this package runs from; asked once per
    process, so that code edited while it runs does not count. (None, None) where it is no git checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None, None  # installed: the version says it all
    try:
        commit = _git(folder, "rev-parse", "HEAD").decode().strip()
        changes = _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
        new = _git(folder, "ls-files", "--others", "--exclude-standard", "-z").decode(errors="surrogateescape")
        total = hashlib.sha256(changes)
        added = [name for name in sorted(new.split("\0")) if name.endswith(SOURCES) and (folder / name).is_file()]
        for name in added:
            total.update(name.encode(errors="surrogateescape") + b"\0" + (folder / name).read_bytes())
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, total.hexdigest() if changes or added else None


def _git(folder: Path, *words: str) -> bytes:
    answer = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=60, check=True)
    return answer.stdout


@functools.cache
def packages() -> Mapping[str, str]:
    """Versions of Python and of the installed packages that may change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def device() -> str:
    """What torch computes on in this process: "cpu", or the GPU's name once CUDA was used; "" before torch is there.

    Asked of the module that is loaded, so that asking imports nothing and wakes no GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return ""
    if not torch.cuda.is_initialized():
        return "cpu"
    return f"cuda ({torch.cuda.get_device_name(torch.cuda.current_device())})"
