# The CPU by default; for NVIDIA GPUs say TORCH=cuda (torch brings CUDA itself, the host brings the driver).
#   docker build -t torchmem .
#   docker build -t torchmem:cuda --build-arg TORCH=cuda .
# Then the make commands of the README, with a folder for what runs write:
#   docker run --rm -v "$PWD/runs:/opt/torchmem/runs" torchmem make train ARGS="steps=20000"
#   docker run --rm --gpus all --shm-size 2g -v "$PWD/runs:/opt/torchmem/runs" torchmem:cuda make train ARGS="trainer=gpu"
FROM python:3.11-slim-bookworm
ARG TORCH=cpu

# make, and what scripts/setup.sh would otherwise fetch at the first start
RUN apt-get update \
 && apt-get install -y --no-install-recommends make g++ libegl1 libgl1 libqt5core5a libqt5gui5 chromium \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/torchmem
# What the environment is made from comes first, so that a change of the code does not build it anew.
COPY pyproject.toml constraints.txt Makefile README.md ./
COPY scripts/ scripts/
COPY torchmem/__init__.py torchmem/__init__.py
RUN make setup SYSTEM=no TORCH=${TORCH} && rm -rf /root/.cache
COPY . .

# graphics: Memory Maze renders through EGL on the GPU
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics
CMD ["make", "train"]
