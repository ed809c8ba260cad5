"""make_panel: gathers recordings and what was measured on them, and writes the page."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchmem.files import atomic_write
from torchmem.models.checkpoint import find_agent, read_card, spec_from
from torchmem.provenance import Provenance
from torchmem.recording import Recording
from torchmem.result import Result, load_result
from torchmem.studies.panel.content import Content, content
from torchmem.studies.panel.page import html
from torchmem.studies.panel.samples import SIMULATED, Sample, pair_edited, put_clusters, read_samples
from torchmem.studies.simulate import simulate
from torchmem.surgery.edits import SiteEdit

WORLDS = ("simulator", "dreamer", "r2i")  # agents in whose world another can act
LARGE_MB = 60
log = logging.getLogger("torchmem")


def make_panel(
    source: str | Path,
    out: str | Path,
    *,
    recording: str | Path | None = None,
    simulated: str | Path | None = None,
    edited: Sequence[str | Path] = (),
    directions: Any = None,
    saliency: str | Path | None = None,
    dynamics: str | Path | None = None,
    intervene: str | Path | None = None,
    clusters: str | Path | None = None,
    episodes: int = 16,
    steps: int = 64,
    samples: int = 16,
    horizon: int = 16,
    init: str = "real",
    guess: bool = False,
    edits: Sequence[SiteEdit] = (),
    edit_name: str = "",
    seed: int = 0,
    batch: int = 32,
    device: str = "cpu",
    allow: bool = False,
) -> Path:
    """Write one HTML page and return its path (`out`, or panel.html in the folder `out`).

    source: a simulator, a run or an agent folder. recording: real play of it, its first `episodes` episodes up to
    `steps` steps each. simulated: a recording that `simulate` made; else, where the source is a simulator, `samples`
    rollouts of `horizon` steps are made here (init, guess, seed, batch, allow: see `simulate`; with saliency its own
    settings hold, so that the rollouts are those it was measured on). edits: of those rollouts, shown beside them
    under `edit_name`.
    edited: recordings of the same seeds or starts made under edits, shown beside. directions: a DirectionsResult.
    saliency, dynamics, intervene, clusters: folders of results. Raises ValueError for what does not belong together.
    """
    made = gather(
        source, recording=recording, simulated=simulated, edited=edited, directions=directions, saliency=saliency,
        dynamics=dynamics, intervene=intervene, clusters=clusters, episodes=episodes, steps=steps, samples=samples,
        horizon=horizon, init=init, guess=guess, edits=edits, edit_name=edit_name, seed=seed, batch=batch,
        device=device, allow=allow,
    )  # fmt: skip
    return write(made, out)


def write(made: Content, out: str | Path) -> Path:
    """The page of `made`; see make_panel for `out`."""
    path = Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        path = path / "panel.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = html(made.meta, made.table, made.blobs)
    if len(text) > LARGE_MB * 1e6:
        log.warning("the page has %.0f MB: fewer --episodes, --steps, --samples or scalars make it load faster",
                    len(text) / 1e6)  # fmt: skip
    return atomic_write(path, text)


def gather(
    source: str | Path, *, recording: Any, simulated: Any, edited: Sequence[Any], directions: Any, saliency: Any,
    dynamics: Any, intervene: Any, clusters: Any, episodes: int, steps: int, samples: int, horizon: int, init: str,
    guess: bool, edits: Sequence[SiteEdit], edit_name: str, seed: int, batch: int, device: str, allow: bool,
) -> Content:  # fmt: skip
    """What the page will hold; arguments as for make_panel."""
    if min(episodes, steps, samples, horizon) < 1:
        raise ValueError("episodes, steps, samples and horizon must be at least 1")
    card = read_card(find_agent(source))
    spec = spec_from(card["env_spec"])
    found = _read(saliency, "SaliencyResult", "torchmem saliency")
    told = _read(dynamics, "DynamicsResult", "torchmem dynamics")
    effects = _read(intervene, "InterveneResult", "torchmem intervene")
    sites = ["memory", *([] if directions is None or directions.site == "memory" else [directions.site])]
    shown: list[Sample] = []
    homes: dict[str, Path] = {}
    caveats: list[str] = []

    def add(folder: Any, most: int, length: int) -> list[Sample]:
        rec = Recording(folder)
        caveats.extend(one for one in rec.provenance.caveats if one not in caveats)
        return read_samples(rec, spec, sites, most, length)

    if recording is not None:
        shown += add(recording, episodes, steps)
        homes[shown[0].source] = Path(recording)
    with tempfile.TemporaryDirectory(prefix="torchmem-panel-") as folder:
        pairs: list[Sample] = []
        if simulated is not None:
            shown += add(simulated, samples, steps)
            homes[SIMULATED] = Path(simulated)
        elif card["agent"] in WORLDS:
            how = {"init": init, "samples": samples, "seed": seed, "sees": "frames"}
            how |= {key: found.settings[key] for key in how if found is not None}
            horizon = horizon if found is None else max(horizon, found.steps)
            how |= {"recording": recording, "horizon": horizon, "guess": guess, "batch": batch, "device": device,
                    "allow": allow}  # fmt: skip
            simulate(source, Path(folder) / "plain", **how)
            shown += add(Path(folder) / "plain", how["samples"], horizon)
            if edits:
                simulate(source, Path(folder) / "edited", edits=edits, **how)
                pairs = add(Path(folder) / "edited", how["samples"], horizon)
        if edits and not pairs:
            raise ValueError("edits need a simulator to act in, and rollouts that are made here (no --simulated); give "
                             "recordings made under them as --edited")  # fmt: skip
        if pairs:
            pair_edited(shown, pairs, "the edited rollouts")
        for one in edited:
            pair_edited(shown, add(one, len(Recording(one).episodes), steps), str(one))
    if not shown:
        raise ValueError(f"{source} is no simulator, so its real play is all there is to show: give --recording")
    groups = None
    if clusters is not None:
        groups = load_result(clusters)
        where = put_clusters(groups, shown, homes)
        groups = (groups, where)
    described = [edit_name] if edit_name else [str(one.describe()) for one in edits]
    for one in edited:
        described += [str(e) for e in Recording(one).provenance.edits] or [str(one)]
    provenance = Provenance.here(
        checkpoint=str(find_agent(source)), weights=card["weights_sha256"], caveats=tuple(caveats),
        seeds={"panel": seed}, edits=tuple(described),
        config={"recording": str(recording), "simulated": str(simulated), "saliency": str(saliency),
                "clusters": str(clusters), "init": init, "samples": samples, "horizon": horizon},
    )  # fmt: skip
    return content(
        spec, shown, title=f"{spec.name}: {Path(source).name}", provenance=provenance, directions=directions,
        saliency=found, dynamics=told, effects=effects, clusters=groups, edit="; ".join(described),
    )  # fmt: skip


def _read(folder: Any, kind: str, verb: str) -> Any:
    if folder is None:
        return None
    found: Result = load_result(folder)
    if type(found).__name__ != kind:
        raise ValueError(f"{folder} is a {type(found).__name__}, not what {verb} writes")
    return found
