"""OpenGL without a screen, for worlds rendered by MuJoCo: chosen before the import, tried before the run."""

from __future__ import annotations

import functools
import os

from torchmem.errors import TorchmemError

ADVICE = (
    "Memory Maze renders with OpenGL. On Debian or Ubuntu: `sudo apt-get install -y libegl1 libgl1` "
    "(and libegl-mesa0 where there is no GPU driver); `torchmem doctor` looks closer"
)


class GLError(TorchmemError):
    """No working OpenGL backend; the message says what to install."""


def prepare_gl() -> None:
    """Set the variables that MuJoCo reads at import; what the user has set stays.

    MUJOCO_GL=egl: headless, on a GPU or (Mesa's llvmpipe) on the CPU. MUJOCO_EGL_DEVICE_ID: where several devices are
    visible and this is one rank of many, the rank's own, else every rank renders on the first GPU.
    LP_NUM_THREADS=1: llvmpipe else starts a thread per core for each world, which costs more than it gains at 64x64.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    rank = os.environ.get("LOCAL_RANK", "")
    devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip().isdigit()]
    if rank.isdigit() and len(devices) > 1:
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", devices[int(rank) % len(devices)].strip())


@functools.cache
def check_gl() -> None:
    """Render one small picture, once per process. Raises GLError if that fails or shows nothing."""
    prepare_gl()
    backend = os.environ["MUJOCO_GL"]
    try:
        from dm_control import mujoco

        scene = '<mujoco><worldbody><geom type="sphere" size="1" rgba="1 0 0 1"/></worldbody></mujoco>'
        physics = mujoco.Physics.from_xml_string(scene)
        picture = physics.render(16, 16)
        physics.free()
    except Exception as error:  # a missing library shows as ImportError, AttributeError, OSError or RuntimeError
        raise GLError(f"MUJOCO_GL={backend} does not work here ({type(error).__name__}: {error}). {ADVICE}") from error
    if picture.min() == picture.max():
        raise GLError(f"MUJOCO_GL={backend} renders an empty picture. {ADVICE}")
