# Everything runs in .venv, which `make setup` builds from constraints.txt. Nothing asks a question.
#   make setup PYTHON=python3.12 TORCH=cpu     see scripts/setup.sh for what may be said
SHELL := /bin/bash
RUN := .venv/bin
ARGS ?=
WORKERS ?= auto
export PYTHON TORCH SYSTEM
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help setup train demo test lint types check doctor clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

setup: ## .venv with pinned packages, and system libraries; quick when up to date
	@scripts/setup.sh

train: setup ## DreamerV3 on a small Memory Maze, sized for two CPU cores; ARGS="seed=1 ..." overrides anything
	$(RUN)/python train.py agent=dreamer env=memory_maze preset=laptop $(ARGS)

demo: setup ## trains an agent that remembers, reads its memory, swaps it and opens the report: under three minutes
	$(RUN)/python examples/memory_story.py

test: setup ## all tests; ARGS="-k replay -x" goes to pytest
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

lint: setup ## ruff
	$(RUN)/ruff check .

types: setup ## pyright, basic
	$(RUN)/pyright

check: lint types test ## ruff, pyright, tests

doctor: setup ## what is missing on this machine, and how to get it
	$(RUN)/torchmem doctor

clean: ## .venv and caches (never runs/)
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
