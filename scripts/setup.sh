#!/usr/bin/env bash
# Makes .venv from pyproject.toml and constraints.txt, and the system libraries that worlds and compilers need.
# Asks nothing. Does nothing when it already ran for the same pins.
#
#   PYTHON=...   the interpreter to use (3.11 or 3.12); default: that of .venv, else the first that is found
#   TORCH=...    default: what was said last time, else auto
#         cpu    only the CPU build
#         cuda   the build of the default index
#         auto   cuda where an NVIDIA driver is found, else cpu, and the default build only if no CPU build is reachable
#                and the disk holds it (it says so)
#   SYSTEM=auto  no: leave system packages alone
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
STAMP=$VENV/.torchmem-setup # line 1: what was built; 2: where; 3: TORCH
TORCH=${TORCH:-$(sed -n 3p "$STAMP" 2>/dev/null || true)}
TORCH=${TORCH:-auto}
SYSTEM=${SYSTEM:-auto}
CPU_INDEX=https://download.pytorch.org/whl/cpu
GPU_BUILD_GB=8 # what the GPU build of torch and its CUDA libraries take once unpacked, rounded up

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# --- Python ------------------------------------------------------------------------------------------------------
version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    case "$(version_of "$PYTHON")" in
      3.11 | 3.12) command -v "$PYTHON"; return ;;
      "") die "PYTHON=$PYTHON does not run" ;;
      *) die "PYTHON=$PYTHON is Python $(version_of "$PYTHON"); torchmem needs 3.11 or 3.12 (Memory Maze has no wheels beyond)" ;;
    esac
  fi
  # a pyenv shim exists for versions that are not switched on, so each candidate is run, not only looked up
  for candidate in "$VENV/bin/python" python3.11 python3.12 python3 python "$HOME"/.pyenv/versions/3.1[12]*/bin/python; do
    case "$(version_of "$candidate")" in 3.11 | 3.12) command -v "$candidate"; return ;; esac
  done
}

# --- system packages ---------------------------------------------------------------------------------------------
AS_ROOT=
[ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n true 2>/dev/null && AS_ROOT="sudo -n"; } || AS_ROOT=never

install_packages() { # what they are for, then package names
  local why=$1; shift
  if [ "$SYSTEM" = no ]; then
    say "SYSTEM=no: not installed ($why): $*"
  elif ! command -v apt-get >/dev/null; then
    say "missing ($why): install the equivalents of these Debian packages: $*"
  elif [ "$AS_ROOT" = never ]; then
    say "missing ($why), and no root here. Run:  sudo apt-get install -y $*"
  else
    say "installing system packages ($why): $*"
    local log; log=$(mktemp)
    if ! { $AS_ROOT env DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
           $AS_ROOT env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1; then
      tail -n 5 "$log" >&2
      say "apt-get failed; by hand:  apt-get update && apt-get install -y $*"
    fi
    rm -f "$log"
  fi
}

library() { ldconfig -p 2>/dev/null | grep -q "$1" || /sbin/ldconfig -p 2>/dev/null | grep -q "$1"; }

system_packages() {
  [ "$(uname -s)" = Linux ] || return 0
  local want=()
  library libEGL.so.1 || want+=(libegl1)
  library libGL.so.1 || want+=(libgl1)
  library libQt5Core.so.5 || want+=(libqt5core5a)
  library libQt5Gui.so.5 || want+=(libqt5gui5)
  command -v g++ >/dev/null || want+=(g++)
  local header; header=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
  [ -e "$header" ] || want+=("python$(version_of "$PY")-dev") # torch.compile builds against Python.h
  [ ${#want[@]} = 0 ] || install_packages "rendering, Procgen, torch.compile" "${want[@]}"
  # apart: Ubuntu has it as a snap only, and apt-get installs all that it is asked for or nothing
  [ -n "$(command -v chromium chromium-browser google-chrome || true)" ] || install_packages "tests of HTML pages" chromium
}

# --- torch -------------------------------------------------------------------------------------------------------
nvidia_driver() { [ -e /proc/driver/nvidia/version ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }; }

pip() { "$VENV/bin/python" -m pip -qq --disable-pip-version-check --no-input "$@"; }

cpu_torch() { # the exact local version, which no GPU build can satisfy
  local build="torch==$TORCH_PIN"
  [ "$(uname -s)" = Linux ] && build="$build+cpu" # elsewhere the only build has no CUDA
  # The index is asked for this one package alone, and quickly given up where it cannot be reached.
  pip install --no-deps --retries 1 --timeout 20 --extra-index-url "$CPU_INDEX" "$build"
}

install_torch() {
  TORCH_PIN=$(sed -n 's/^torch==//p' constraints.txt)
  local have; have=$("$VENV/bin/python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
  local choice=$TORCH
  if [ "$choice" = auto ]; then if nvidia_driver; then choice=cuda; else choice=auto-cpu; fi; fi
  case "$choice" in
    cuda)
      [ "${have%%+*}" = "$TORCH_PIN" ] && [[ "$have" != *+cpu ]] && return
      say "torch $TORCH_PIN, GPU build"
      pip install --constraint constraints.txt "torch==$TORCH_PIN"
      ;;
    cpu | auto-cpu)
      [ "$have" = "$TORCH_PIN+cpu" ] && return
      say "torch $TORCH_PIN, CPU build (no NVIDIA driver, or TORCH=cpu)"
      local log; log=$(mktemp)
      if ! cpu_torch >"$log" 2>&1; then
        { grep '^ERROR' "$log" || tail -n 2 "$log"; } | tail -n 1 | cut -c 1-160 >&2
        [ "$choice" = auto-cpu ] || die "no CPU build of torch $TORCH_PIN is reachable ($CPU_INDEX); TORCH=cuda takes the default one"
        local free_gb; free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
        [ "$free_gb" -ge $((2 * GPU_BUILD_GB)) ] || die \
          "no CPU build of torch $TORCH_PIN is reachable, and $free_gb GB of free disk are too few for the GPU build." \
          "Make $CPU_INDEX reachable, or put a CPU wheel where pip finds it (pip config set global.find-links FOLDER)."
        say "WARNING: no CPU build of torch $TORCH_PIN is reachable ($CPU_INDEX)."
        say "WARNING: taking the default build with its CUDA libraries (about $GPU_BUILD_GB GB) though there is no NVIDIA driver;"
        say "WARNING: it computes the same on the CPU. TORCH=cpu refuses this."
        pip install --constraint constraints.txt "torch==$TORCH_PIN"
      fi
      rm -f "$log"
      ;;
    *) die "TORCH=$TORCH: one of auto, cpu, cuda" ;;
  esac
}

# --- go ----------------------------------------------------------------------------------------------------------
if [ -e "$STAMP" ] && [ "$(sed -n 2p "$STAMP")" != "$PWD" ]; then
  say "$VENV was made in $(sed -n 2p "$STAMP") and does not move: made anew"
  rm -rf "$VENV"
fi
PY=$(find_python)
if [ -z "$PY" ] && command -v apt-get >/dev/null && [ "$AS_ROOT" != never ] && [ "$SYSTEM" != no ]; then
  install_packages "Python itself" python3 python3-venv
  PY=$(find_python)
fi
[ -n "$PY" ] || die "Python 3.11 or 3.12 was not found." \
  "Get one (Debian 12: apt-get install python3 python3-venv; anywhere: uv python install 3.12), then: make setup PYTHON=/path/to/python"

WANT=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)-$(version_of "$PY")-$TORCH
if [ -e "$STAMP" ] && [ "$(sed -n 1p "$STAMP")" = "$WANT" ]; then exit 0; fi

started=$SECONDS
say "Python $(version_of "$PY") ($PY)"
system_packages
if [ -e "$VENV" ] && [ "$(version_of "$VENV/bin/python")" != "$(version_of "$PY")" ]; then
  say "$VENV holds another Python: made anew"
  rm -rf "$VENV"
fi
if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
  rm -rf "$VENV"
  PY=$(find_python) # not the one inside, which is gone now
  "$PY" -c 'import ensurepip, venv' 2>/dev/null || install_packages "virtual environments" "python$(version_of "$PY")-venv"
  "$PY" -m venv "$VENV" || die "could not make $VENV with $PY (Debian: apt-get install python$(version_of "$PY")-venv)"
fi
pip install "pip==26.3"
install_torch
say "packages of constraints.txt"
pip install --constraint constraints.txt --editable ".[dev,browser]"
pip check || die "the installed packages do not fit together (above): rm -rf $VENV and run make setup again"
printf '%s\n' "$WANT" "$PWD" "$TORCH" >"$STAMP"
say "done in $((SECONDS - started)) s. 'make doctor' looks at the machine, 'make train' trains, 'make test' tests."
