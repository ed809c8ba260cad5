"""Reads source files for tests/test_house_rules.py: what a file imports, and which forbidden things it does."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

# a leaf imports no other part of torchmem but these leaves; every room may import all leaves
LEAF_IMPORTS: dict[str, tuple[str, ...]] = {
    "types": (),
    "files": (),
    "options": (),
    "errors": (),
    "allocator": (),
    "provenance": (),
    "artefact": ("errors", "provenance"),
    "recording": ("types", "files", "errors", "result", "artefact", "recording"),  # a package
    "result": ("types", "files", "errors", "provenance", "artefact"),
    "report": ("files", "result"),
    "video": (),
    "intervals": (),
}
LEAVES = tuple(LEAF_IMPORTS)
# room -> what it may import of torchmem, as dotted prefixes. A room may always import itself and the leaves.
ROOMS: dict[str, tuple[str, ...]] = {
    "envs": (),
    "models": (),
    "training": ("envs", "models"),
    "surgery": (
        "models.protocol", "models.checkpoint", "models.noise", "models.twin",
        "envs.protocol", "envs.collector", "envs.vector", "envs.tensor_vector", "envs.make", "envs.seeds",  # it plays
    ),
    "analysis": (),
    "studies": ("envs", "models", "training", "surgery", "analysis"),
    "verify": ("envs", "models", "training"),  # self-tests for users
    "pipeline": (),  # it starts other commands as processes, so it knows none of them
    # beside the rooms: entry points, which may know everything
    "cli": (
        "envs", "models", "training", "surgery", "analysis", "studies", "verify", "pipeline", "doctor", "cli_import",
        "cli_verbs",
    ),
    "cli_import": ("envs", "models"),  # the verb with most branches, apart
    "cli_verbs": (),  # names of functions, imported by none but the verb that is asked for
    "doctor": (),  # it must run where nothing else does
    "__init__": ("envs", "models", "training", "surgery", "analysis"),
}
# package -> the only rooms that may import it
PACKAGES: dict[str, tuple[str, ...]] = {
    "lightning": ("training",),
    "hydra": ("training",),
    "omegaconf": ("training",),
    "nnsight": ("surgery",),
    "sklearn": ("analysis", "studies"),
    "pynapple": ("analysis", "studies", "recording"),
    "pickle": ("models.importers",),  # a restricted Unpickler
    "gym": (),  # unmaintained, and broken with NumPy 2: gymnasium
    "dill": (),
    "joblib": (),
    "shelve": (),
    "marshal": (),
}
# all third-party modules that models may import
MODEL_PACKAGES = ("torch", "tensordict", "torchrl.objectives.value", "safetensors", "numpy", "jaxtyping")
IMPORTER_PACKAGES = (*MODEL_PACKAGES, "ruamel")


@dataclasses.dataclass(frozen=True)
class Import:
    module: str  # absolute and dotted, with the imported name: "torchmem.types.EnvSpec"
    line: int
    deferred: bool  # inside a function, or for type checkers only: importing the file does not run it
    star: bool


def imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import of a file, relative ones resolved against `package` ("torchmem.envs")."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and _dotted(node.test).split(".")[-1] == "TYPE_CHECKING")
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, id(node) in inside, False)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = [] if not node.level else parts[: len(parts) - node.level + 1]
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(f"{stem}.{alias.name}", node.lineno, id(node) in inside, alias.name == "*")


def under(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def layer_faults(source: str, name: str, stdlib: frozenset[str]) -> list[str]:
    """Imports that break the layers of docs/data_path.md. name: dotted, without "torchmem." ("envs.dummy")."""
    room = name.split(".")[0]
    package = ".".join(["torchmem", *name.split(".")[:-1]])
    faults = []
    for item in imports(ast.parse(source), package):
        where = f"{name}:{item.line}"
        top = item.module.split(".")[0]
        if top == "torchmem":
            target = item.module.removeprefix("torchmem").removeprefix(".") or "__init__"
            if room in LEAF_IMPORTS:
                allowed: tuple[str, ...] = LEAF_IMPORTS[room]
            elif room in ROOMS:
                allowed = (*ROOMS[room], *LEAVES, room)
            else:
                return [f"{name}: not a room that tests/house.py knows: put the file into one, or add the room there"]
            if not under(target, allowed) and target != "__version__":
                faults.append(f"{where} imports torchmem.{target}; {room} may import {', '.join(allowed) or 'nothing'}")
        elif top in PACKAGES and not under(name, PACKAGES[top]):
            faults.append(f"{where} imports {top}, which only {', '.join(PACKAGES[top]) or 'nobody'} may")
        elif top == "matplotlib" and not item.deferred:
            faults.append(f"{where} imports matplotlib outside a plotting function")
        elif room == "models" and top not in stdlib:
            allowed = IMPORTER_PACKAGES if under(name, ("models.importers",)) else MODEL_PACKAGES
            if not under(item.module, allowed):
                faults.append(f"{where} imports {item.module}; models may import {', '.join(allowed)}")
    return faults


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _keyword(call: ast.Call, name: str) -> object:
    for keyword in call.keywords:
        if keyword.arg == name and isinstance(keyword.value, ast.Constant):
            return keyword.value.value
    return None


def habit_faults(source: str, name: str) -> list[str]:
    """Things no file of the package does: print, debuggers, star imports, `self.device`, stubs, unsafe loading."""
    faults = []
    tree = ast.parse(source)
    for item in imports(tree, "torchmem"):
        if item.star:
            faults.append(f"{name}:{item.line} star import")
        if item.module.split(".")[0] in ("pdb", "ipdb"):
            faults.append(f"{name}:{item.line} debugger")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _dotted(node) == "self.device" and isinstance(node.ctx, ast.Store):
            # a copy goes stale after .to(): ask the tensors
            faults.append(f"{name}:{node.lineno} stores self.device")
        if isinstance(node, ast.Name) and node.id == "NotImplementedError":
            faults.append(f"{name}:{node.lineno} stub: NotImplementedError")
        if isinstance(node, ast.Call):
            faults += [f"{name}:{node.lineno} {fault}" for fault in _call_faults(node)]
    for number, line in enumerate(source.splitlines(), 1):
        if any(word in line for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X")):
            faults.append(f"{name}:{number} unfinished work in a comment")
    return faults


def _call_faults(call: ast.Call) -> Iterator[str]:
    function = _dotted(call.func)
    if function in ("print", "breakpoint", "eval", "exec"):
        yield f"{function}()"
    if function in ("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads"):
        yield f"{function} runs code of the file it reads"
    if function == "torch.load" and _keyword(call, "weights_only") is not True:
        yield "torch.load without weights_only=True"
    if function in ("np.load", "numpy.load") and _keyword(call, "allow_pickle") is True:
        yield "numpy.load(allow_pickle=True)"
    if function.split(".")[-1] == "YAML" and _keyword(call, "typ") in ("unsafe", "base"):
        yield "YAML(typ='unsafe')"


def python_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if "__pycache__" not in path.parts)
