"""Verbs whose arguments live beside what they run: name -> (function of parser and say, help). Imports nothing."""

from __future__ import annotations

ELSEWHERE = {
    "probe": (
        "torchmem.analysis._probe_command:fill",
        "Decode a covariate from recorded sites: linear probes on episodes held out, each score beside its controls.",
    ),
    "tune": (
        "torchmem.analysis._tune_command:fill",
        "Rate maps and heading curves of every recorded unit: information, explained variance, fields, kinds of cells.",
    ),
    "dream": (
        "torchmem.studies.dream_command:fill",
        "Let a world model dream, and decode where it believes to be: divergence from what came, against chance.",
    ),
    "vitals": (
        "torchmem.studies.vitals_command:fill",
        "Health, food, drink, energy in Crafter: actions by level, unlocks, deaths; and an agent that is shown others.",
    ),
    "trajectories": (
        "torchmem.analysis._trajectories_command:fill",
        "Draw where the agent went: paths and occupancy on the world's map, films of what it saw, how much it met.",
    ),
    "collect": (
        "torchmem.studies.maze.collect_command:fill",
        "Walk through Memory Mazes by a script and keep it in the published offline format, for `study maze`.",
    ),
    "study": (
        "torchmem.studies.commands:fill",
        "Run a whole study of a trained agent and write one folder: numbers, tables, figures and a page to read.",
    ),
    "updates": (
        "torchmem.studies.updates.command:fill",
        "Isolate what one update of the weights holds: change one thing, train on, take the difference away, salvage.",
    ),
    "simulator": (
        "torchmem.studies.simulator_command:fill_simulator",
        "Train a differentiable world around a frozen agent from a recording, and report how far it can be believed.",
    ),
    "simulate": (
        "torchmem.studies.simulator_command:fill_simulate",
        "Let an agent act in its simulator and keep the rollouts as a recording.",
    ),
    "saliency": (
        "torchmem.studies.lab_command:fill_saliency",
        "Gradients of value, actions or directions by memory, world and frames of earlier steps, way by way.",
    ),
    "intervene": (
        "torchmem.studies.lab_command:fill_intervene",
        "Swap, drop or clamp directions of memory, in the simulator and in the real world, beside random directions.",
    ),
    "optimise": (
        "torchmem.studies.optimise_command:fill",
        "Search a simulator's space of starts for what the agent values or does most, beside random and real starts.",
    ),
    "dynamics": (
        "torchmem.studies.lab_command:fill_dynamics",
        "Which direction of memory drives which: Jacobians in a simulator beside lagged links in real play.",
    ),
    "behaviours": (
        "torchmem.analysis._behaviours_command:fill",
        "Cluster what agent and world hold and how it changes into behaviours: stability, profile, exemplar clips.",
    ),
    "directions": (
        "torchmem.analysis._directions_command:fill",
        "Find the directions along which a recorded site moves (PCA, ICA, NMF): variance, stability, to edit along.",
    ),
    "watch": (
        "torchmem.studies.watch_command:fill",
        "Watch a trained agent play: what it sees, does and expects, in a window or as a GIF or MP4.",
    ),
    "panel": (
        "torchmem.studies.panel.command:fill",
        "One HTML page of real and simulated rollouts: frames, saliency, directions, traces, filters, edits, clusters.",
    ),
    "provenance": (
        "torchmem.pipeline.command:fill_provenance",
        "Tell what an artefact was made from, by which code and settings, back to the training run.",
    ),
}
