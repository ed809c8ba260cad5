"""A small agent that sees pictures, what it played and dreamt, everything measured on that, and the page of it all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.models.simulator import tiny
from tests.training import simulated
from torchmem.analysis.cluster_behaviours import cluster_behaviours
from torchmem.analysis.find_directions import find_directions
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.studies.direction_edits import Changes, make_edits
from torchmem.studies.dynamics import measure_dynamics
from torchmem.studies.intervene import measure_interventions
from torchmem.studies.panel.build import make_panel
from torchmem.studies.saliency import measure_saliency
from torchmem.studies.simulate import simulate
from torchmem.surgery.model import load
from torchmem.surgery.record import record

SAMPLES, STEPS, AT, K = 9, 6, 3, 4


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> SimpleNamespace:
    home: Path = tmp_path_factory.mktemp("panel")
    fresh = tiny.dreamer(env_spec("minigrid_memory", obs="rgb", **simulated.WORLD))
    torch.manual_seed(7)
    with torch.no_grad():  # else its heads are zero: all values equal, and no gradient anywhere
        for weight in fresh.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    agent = save_agent(fresh, home / "agent")
    rec = record(load(agent), episodes=8, envs=4, out=home / "recording", seed=3)
    directions = find_directions(rec, "memory", method="pca", count=K, draws=0)
    edits = make_edits(directions, Changes(clamp=((0, 2.0),)))
    how = {"recording": rec.path, "samples": SAMPLES, "allow": True}
    saliency = measure_saliency(
        agent, scalars=("value", "prob:1", "directions"), at=AT, directions=directions,
        ways=("total", "internal", "external"), **how,
    )  # fmt: skip
    sim = simulate(agent, home / "simulated", horizon=STEPS, **how)
    simulate(agent, home / "edited", horizon=STEPS, edits=edits, **how)
    clusters = cluster_behaviours([rec, sim], ["memory"], lags=(1, 2), count=3, draws=2)
    dynamics = measure_dynamics(agent, rec.path, directions, lags=2, draws=5, samples=8, allow=True)
    effects = measure_interventions(
        agent, rec.path, directions, Changes(swap=((0, 1),)), samples=4, controls=2, horizon=5, allow=True
    )
    folders = {name: one.save(home / name) for name, one in
               {"directions": directions, "saliency": saliency, "clusters": clusters, "dynamics": dynamics,
                "intervene": effects}.items()}  # fmt: skip
    page = make_panel(
        agent, home / "panel.html", recording=rec.path, simulated=sim.path, edited=[home / "edited"],
        directions=directions, episodes=6, samples=SAMPLES, allow=True,
        **{name: folders[name] for name in ("saliency", "clusters", "dynamics", "intervene")},
    )  # fmt: skip
    return SimpleNamespace(
        home=home, agent=agent, rec=rec, sim=sim, directions=directions, saliency=saliency, clusters=clusters,
        folders=folders, page=page, edits=edits,
    )  # fmt: skip
