"""What is missing on this machine, and how to get it: `torchmem doctor`.

Whatever may crash or hang (a driver, a simulator, a foreign library) is tried in a process of its own, so that the
report is always complete. Imports nothing of torchmem and nothing heavy: it must run where nothing else does.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

APT = "sudo apt-get install -y"
SETUP = "make setup"
PYTHONS = ((3, 11), (3, 12))
# One step of a 64x64 RGB world at size 12m, in bytes, at most: image, float32 deter (2048), stoch (32x16).
STEP_BYTES = 64 * 64 * 3 + 4 * 2048 + 4 * 32 * 16
PAPER_STEPS = 5_000_000  # the replay capacity of the DreamerV3 paper
LEAST_STEPS = 100_000  # fewer, and a run of the real size forgets its own start within minutes
LEAST_MEMORY_GB = 6.0  # a size12m update on the CPU takes up to 5 GB


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    name: what was looked at. ok: whether it is as it should be. found: what is there, or how it failed.
    fix: the command or the step that mends it; empty if ok. needed: False where only a part of torchmem misses it.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def probe(code: str, env: Mapping[str, str] | None = None, timeout_s: float = 120.0) -> tuple[bool, str]:
    """Run Python code in a new process: (it succeeded, its last printed line or the reason why not)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:.0f} s"
    if done.returncode < 0:
        return False, f"killed by {signal.Signals(-done.returncode).name}"
    # what finalisers complain about after the first error is not the reason
    text = done.stdout if done.returncode == 0 else done.stderr.split("Exception ignored in")[0]
    lines = text.strip().splitlines()
    return done.returncode == 0, lines[-1].strip() if lines else f"exit code {done.returncode}"


# --- the interpreter and torch ---------------------------------------------------------------------------------------
def check_python(version: tuple[int, int] | None = None) -> Check:
    version = version or sys.version_info[:2]
    text = f"{version[0]}.{version[1]} ({platform.machine()}, {platform.system()})"
    ways = "uv python install 3.12 (Debian 12: apt-get install python3), then make setup PYTHON=/path/to/python"
    return Check("Python", version in PYTHONS, text, "" if version in PYTHONS else ways)


TORCH = """
import torch
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
bf16 = bool(names) and torch.cuda.is_bf16_supported()
print(torch.__version__, "|", torch.version.cuda or "none", "|", ", ".join(names), "|", "bf16" if bf16 else "")
"""


def nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def check_torch() -> Check:
    ok, text = probe(TORCH)
    if not ok:
        return Check("torch", False, text, SETUP)
    version, cuda, names, bf16 = (part.strip() for part in text.split("|"))
    if names:
        return Check("torch", True, f"{version}, CUDA {cuda}: {names}{', bf16' if bf16 else ''}")
    if nvidia_driver():
        why = "its CPU build" if cuda == "none" else f"CUDA {cuda}, which does not see the GPU (nvidia-smi tells more)"
        fix = f"rm -rf .venv && {SETUP} TORCH=cuda" if cuda == "none" else "a driver that knows this CUDA version"
        return Check("torch", False, f"{version}: an NVIDIA driver is here, but torch is {why}", fix, needed=False)
    return Check("torch", True, f"{version}, on the CPU")


# --- rendering -------------------------------------------------------------------------------------------------------
FRAME = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.5' rgba='1 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
frame = renderer.render()
red, green = frame[..., 0].mean(), frame[..., 1].mean()
assert red > 20 and red > 2 * green, f"the frame does not show the red ball (red {red:.0f}, green {green:.0f})"
from OpenGL import GL
print((GL.glGetString(GL.GL_RENDERER) or b"").decode() or "renders", flush=True)
import os
os._exit(0)  # OSMesa complains while Python ends, after its work is done
"""


def check_rendering() -> Check:
    """One real frame with each of MuJoCo's headless backends; EGL is what Memory Maze uses."""
    with ThreadPoolExecutor(2) as pool:
        tries = dict(zip(("egl", "osmesa"), pool.map(lambda n: probe(FRAME, {"MUJOCO_GL": n}), ("egl", "osmesa"))))
    if tries["egl"][0]:
        return Check("GL rendering", True, f"EGL: {tries['egl'][1]}")
    found = f"EGL: {tries['egl'][1]}"
    fix = f"{APT} libegl1 libgl1"
    if tries["osmesa"][0]:
        fix = f"{fix}; until then: export MUJOCO_GL=osmesa"
        return Check("GL rendering", False, f"{found}; OSMesa renders", fix, needed=False)
    return Check("GL rendering", False, found, f"{fix}   (Memory Maze draws with EGL; Mesa's suffices, no GPU needed)")


def loads(library: str) -> bool:
    """Whether the dynamic linker finds a library."""
    return probe(f"import ctypes; ctypes.CDLL({library!r})", timeout_s=20)[0]


def check_qt() -> Check:
    packages = {"libQt5Core.so.5": "libqt5core5a", "libQt5Gui.so.5": "libqt5gui5"}
    missing = {name: package for name, package in packages.items() if not loads(name)}
    found = "missing " + ", ".join(missing) if missing else "libQt5Core and libQt5Gui"
    fix = f"{APT} {' '.join(missing.values())}   (only Procgen through EnvPool needs them)" if missing else ""
    return Check("Qt 5 for Procgen", not missing, found, fix, needed=False)


# --- torch.compile ---------------------------------------------------------------------------------------------------
def check_compiler() -> Check:
    """Inductor builds C++ against Python.h and OpenMP: so does this."""
    compiler = os.environ.get("CXX", "g++")
    path = shutil.which(compiler)
    package = "g++"
    if path is None:
        found = f"{compiler} is not on PATH"
    else:
        include = sysconfig.get_path("include")
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text("#include <Python.h>\n#include <omp.h>\nint probe() { return omp_get_max_threads(); }\n")
            command = [path, "-shared", "-fPIC", "-fopenmp", f"-I{include}", str(source), "-o", f"{folder}/probe.so"]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            return Check("C++ compiler", True, path)
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it fails"]
        found = f"{path}: {lines[0].strip()[-120:]}"
        if not Path(include, "Python.h").exists():
            package = f"g++ python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    fix = f"{APT} {package}   (torch.compile needs it; compile=off does not)"
    return Check("C++ compiler", False, found, fix, needed=False)


# --- the machine -----------------------------------------------------------------------------------------------------
def check_disk(folder: str | Path = ".", free: int | None = None) -> Check:
    """Free space against the replay: by default it takes half the free disk, at most the paper's 5 million steps."""
    place = Path(folder).resolve()
    while not place.exists():  # the folder of a run to come
        place = place.parent
    free = shutil.disk_usage(place).free if free is None else free
    steps = min(free // 2 // STEP_BYTES, PAPER_STEPS)
    found = f"{free / 1e9:.0f} GB free: a default replay of {steps:,} image steps (the paper's: {PAPER_STEPS:,})"
    low = steps < LEAST_STEPS
    fix = "free some disk, or set replay.directory=/a/larger/disk, or a smaller replay.capacity" if low else ""
    return Check("disk", not low, found, fix, needed=False)


def _number(path: str, index: int = 0) -> float | None:
    """One number of a control-group file, None where there is none."""
    try:
        return float(Path(path).read_text().split()[index])
    except (OSError, ValueError, IndexError):
        return None


def memory_gb() -> float:
    """Memory this process may use: the machine's, or its container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, _number("/sys/fs/cgroup/memory.max") or total) / 1e9


def cores() -> float:
    """Cores this process may use: its affinity, or its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = _number("/sys/fs/cgroup/cpu.max"), _number("/sys/fs/cgroup/cpu.max", 1)
    return min(count, quota / period) if quota and period else count


def check_memory(gigabytes: float | None = None) -> Check:
    gigabytes = memory_gb() if gigabytes is None else gigabytes
    fix = "" if gigabytes >= LEAST_MEMORY_GB else "size=1m fits; size=12m on the CPU takes up to 5 GB"
    return Check("memory", not fix, f"{gigabytes:.1f} GB", fix, needed=False)


MATMUL = """
import time, torch
device = "cuda" if torch.cuda.is_available() else "cpu"
wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
n = 4096 if device == "cuda" else 1024
def rate(dtype):
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        wait(); start = time.perf_counter(); a @ b; wait()
        best = min(best, time.perf_counter() - start)
    return 2 * n ** 3 / best / 1e9
print(f"{rate(torch.float32):,.0f} GFLOP/s in float32, {rate(torch.bfloat16):,.0f} in bfloat16, on {device}")
"""


def check_speed() -> Check:
    ok, text = probe(MATMUL)
    fix = "" if ok else f"{SETUP} (torch does not multiply)"
    count = f"{cores():g} core{'s' if cores() != 1 else ''}"
    return Check("cores and matrix products", ok, f"{count}; {text}", fix)


# --- worlds ----------------------------------------------------------------------------------------------------------
MAKE = (
    "from torchmem.envs.make import make_env; env = make_env({0!r}); env.reset(seed=1); env.close(); "
    "print('makes and resets')"
)
IMPORT = "import importlib.metadata as m, {0}; print(m.version({0!r}))"
PROCGEN = (
    "import envpool, importlib.metadata as m; e = envpool.make_gymnasium('CoinrunHard-v0', num_envs=1); e.reset(); "
    "print(m.version('envpool'))"
)
# name -> (code that tries it, whether the main job is lost without it)
WORLDS: dict[str, tuple[str, bool]] = {
    "dummy": (MAKE.format("dummy"), True),
    "minigrid_memory": (MAKE.format("minigrid_memory"), True),
    "memory_maze": (MAKE.format("memory_maze"), True),
    "crafter": (IMPORT.format("crafter"), False),
    "popgym": (IMPORT.format("popgym"), False),
    "procgen (envpool)": (PROCGEN, False),
}


def check_world(name: str) -> Check:
    code, needed = WORLDS[name]
    ok, text = probe(code)
    fix = "" if ok else f"{SETUP}; if it stays, mend what is marked above this line first"
    return Check(f"world {name}", ok, text, fix, needed)


# --- all of it -------------------------------------------------------------------------------------------------------
def doctor(folder: str | Path = ".") -> list[Check]:
    """Look at everything, in the order a person would mend it. folder: where runs will be written. About 20 s."""
    looks: list[Callable[[], Check]] = [
        check_python,
        check_torch,
        check_rendering,
        check_qt,
        check_compiler,
        lambda: check_disk(folder),
        check_memory,
    ]
    speed = check_speed()  # alone, or it measures the other probes
    with ThreadPoolExecutor(2) as pool:
        machine = list(pool.map(lambda look: look(), looks))
        worlds = list(pool.map(check_world, WORLDS))
    return [*machine, speed, *worlds]


def exit_code(checks: list[Check]) -> int:
    """1 if something is missing that the main job needs, else 0."""
    return int(any(check.needed and not check.ok for check in checks))


def report(checks: list[Check]) -> str:
    """The checks as text: one line each, and under each failed one how to mend it."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = "ok     " if check.ok else "MISSING" if check.needed else "partly "
        lines.append(f"{mark}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"         {'':<{width}}  -> {check.fix}")
    missing = [check.name for check in checks if check.needed and not check.ok]
    partly = [check.name for check in checks if not check.needed and not check.ok]
    if missing:
        lines.append(f"\nNot ready: {', '.join(missing)}.")
    else:
        lines.append("\nReady." + (f" Not everything works: {', '.join(partly)}." if partly else ""))
    return "\n".join(lines)
