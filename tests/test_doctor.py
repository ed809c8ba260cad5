"""The doctor sees what is missing, says how to get it, and survives what it looks at."""

from __future__ import annotations

import sys

import pytest

from torchmem import doctor
from torchmem.doctor import Check


def test_probe_survives_crash_hang_and_error():
    assert doctor.probe("print('one'); print('two')") == (True, "two")
    assert doctor.probe("import os; os.abort()") == (False, "killed by SIGABRT")
    assert doctor.probe("while True: pass", timeout_s=0.5) == (False, "no answer within 0 s")
    ok, text = doctor.probe("import no_such_module")
    assert not ok and "no_such_module" in text
    assert doctor.probe("raise SystemExit(3)") == (False, "exit code 3")


def test_python_versions():
    assert doctor.check_python((3, 11)).ok and doctor.check_python((3, 12)).ok
    for version in ((3, 10), (3, 13)):
        check = doctor.check_python(version)
        assert not check.ok and check.needed and "make setup PYTHON=" in check.fix


def answer(monkeypatch: pytest.MonkeyPatch, **answers: tuple[bool, str]) -> None:
    """Let probes answer as told, by MUJOCO_GL or "any"."""

    def told(code: str, env: dict[str, str] | None = None, timeout_s: float = 0) -> tuple[bool, str]:
        return answers[(env or {}).get("MUJOCO_GL", "any")]

    monkeypatch.setattr(doctor, "probe", told)


def test_no_gl_names_the_debian_packages(monkeypatch):
    answer(monkeypatch, egl=(False, "no EGL"), osmesa=(False, "no OSMesa"))
    check = doctor.check_rendering()
    assert not check.ok and check.needed
    assert "apt-get install -y libegl1 libgl1" in check.fix and "no EGL" in check.found


def test_osmesa_alone_is_a_way_out(monkeypatch):
    answer(monkeypatch, egl=(False, "no EGL"), osmesa=(True, "softpipe"))
    check = doctor.check_rendering()
    assert not check.ok and not check.needed and "MUJOCO_GL=osmesa" in check.fix


def test_broken_gl_is_seen_by_the_real_probe():
    ok, text = doctor.probe(doctor.FRAME, {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "nonsense"})
    assert not ok and text


def test_missing_qt_names_its_package(monkeypatch):
    monkeypatch.setattr(doctor, "loads", lambda name: "Core" in name)
    check = doctor.check_qt()
    assert not check.ok and not check.needed and "libqt5gui5" in check.fix and "libqt5core5a" not in check.fix
    monkeypatch.undo()
    assert not doctor.loads("libNoSuchThing.so.5")


def test_missing_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    check = doctor.check_compiler()
    assert not check.ok and not check.needed and "apt-get install -y g++" in check.fix


def test_compiler_without_python_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    check = doctor.check_compiler()
    assert not check.ok
    assert f"python{sys.version_info[0]}.{sys.version_info[1]}-dev" in check.fix or "not on PATH" in check.found


def test_disk_and_memory_have_a_least_amount(tmp_path):
    assert doctor.check_disk(free=200_000_000_000).ok
    assert "GB free" in doctor.check_disk(tmp_path / "not" / "yet").found
    small = doctor.check_disk(free=1_000_000_000)
    assert not small.ok and "replay.directory" in small.fix
    assert doctor.check_memory(16.0).ok and not doctor.check_memory(2.0).ok
    assert 0 < doctor.memory_gb() < 1e5 and doctor.cores() > 0


def test_container_limits_count(monkeypatch):
    monkeypatch.setattr(doctor, "_number", lambda path, index=0: {0: 150000.0, 1: 100000.0}[index])
    assert doctor.cores() <= 1.5
    monkeypatch.setattr(doctor, "_number", lambda path, index=0: 2e9)
    assert doctor.memory_gb() <= 2.0


def test_gpu_with_cpu_torch_is_told(monkeypatch):
    answer(monkeypatch, any=(True, "2.13.0+cpu | none |  | "))
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: True)
    check = doctor.check_torch()
    assert not check.ok and not check.needed and "TORCH=cuda" in check.fix
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: False)
    assert doctor.check_torch().ok
    answer(monkeypatch, any=(False, "ModuleNotFoundError: torch"))
    assert not doctor.check_torch().ok and doctor.check_torch().needed


def test_world_that_crashes_is_reported(monkeypatch):
    monkeypatch.setitem(doctor.WORLDS, "dummy", ("import os; os.kill(os.getpid(), 11)", True))
    check = doctor.check_world("dummy")
    assert not check.ok and "SIGSEGV" in check.found and check.fix
    assert doctor.exit_code([check]) == 1


def test_report_and_exit_code():
    good, partly = Check("a", True, "fine"), Check("b", False, "gone", "get b", needed=False)
    bad = Check("c", False, "gone", "get c")
    assert doctor.exit_code([good, partly]) == 0 and doctor.exit_code([good, bad]) == 1
    text = doctor.report([good, partly, bad])
    assert "-> get b" in text and "-> get c" in text and "Not ready: c." in text
    assert "Ready. Not everything works: b." in doctor.report([good, partly])
    assert doctor.report([good]).endswith("Ready.")


def test_this_machine_runs_the_small_probes():
    assert doctor.check_torch().ok
    assert "GFLOP/s" in doctor.check_speed().found
