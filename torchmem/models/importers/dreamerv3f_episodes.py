"""Recordings that the crafter fork vviggyy/dreamerv3f made: episode_NNN.pkl and replay chunks, as a Recording.

Formats: the fork at commit 468436a (30 Jan 2026) and later. A row holds the observation of step t, the latents after
it, the action taken at t (0 at the last step), and the reward that came with the observation. Pickles are read by a
reader that can only rebuild arrays; npz files without pickle.

Until it had the switch `agent.include_position` the fork fed `player_pos` to its encoder and trained to reconstruct
it. Position can be decoded from such an agent whatever it remembers, and every result made from it says so.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.errors import TorchmemError
from torchmem.models.checkpoint import file_hash
from torchmem.models.importers.array_pickle import load_arrays
from torchmem.recording import Recording, RecordingWriter
from torchmem.result import Provenance

log = logging.getLogger("torchmem")

LEAK = "the agent was given its position (player_pos) as an input: that it can be decoded shows nothing about memory"
LONGEST = 10000  # steps after which Crafter ends an episode that no death has ended
MOVES = {1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1)}  # action -> facing (x right, y down)
VITALS = ("health", "food", "drink", "energy")
UNITS = {
    "pos": "cells", "facing": "cells", "facing_from_actions": "cells", "image": "pixels", "is_first": "bool",
    "is_last": "bool", "is_terminal": "bool", "world": "id", **dict.fromkeys(VITALS, "count"),
}  # fmt: skip
Columns = dict[str, np.ndarray]


class EpisodesError(TorchmemError):
    """Files are not those of dreamerv3f, or do not fit each other; the message names the file and the key."""


def import_episodes(source: str | Path | Sequence[str | Path], out: str | Path, *, leak: str = "auto") -> Recording:
    """Write the Recording `out` from episode pickles or replay chunks, and return it.

    source: a folder with episode_*.pkl or with replay chunks (*.npz), one such file, or a list of them. leak: whether
    the agent was given its position: "yes", "no", or "auto", by what the files hold: an agent without a vector encoder
    (no act/enc/mlp*) in a recording that lists its layers was not; any other was, or cannot be told from one that was.

    Sites: dynamics.deter (T, D), dynamics.stoch (T, S, K), and of newer files encoder.*, actor.*, critic.*. Covariates:
    pos (cells, x right and y down), reward, action, obs.image, flags, and where recorded facing, vitals, achievements
    (T, 22: counts, by name in alphabetical order). Without a recorded facing, `facing_from_actions` is the direction of
    the last move (wrong while asleep). world: number of the world, where first frames tell. Raises EpisodesError,
    PickleRefused, FileExistsError.
    """
    paths = _files(source)
    if leak not in ("auto", "yes", "no"):
        raise EpisodesError(f"leak={leak!r}: auto, yes or no")
    chunks = paths[0].suffix == ".npz"
    episodes = list(_chunk_episodes(paths) if chunks else map(_pickle_episode, paths))
    leaked = leak == "yes" or (leak == "auto" and not _position_free(episodes))
    about = _metadata(paths[0].parent)
    if (worlds := _worlds(episodes)) is not None:
        for (_, covariates, _), world in zip(episodes, worlds):
            covariates["world"] = np.full(len(covariates["pos"]), world)
    provenance = Provenance.here(
        checkpoint=f"vviggyy/dreamerv3f: {paths[0].parent}",
        config={"importer": "dreamerv3f", "position_leak": leaked, "files": {p.name: file_hash(p) for p in paths}}
        | about,
        caveats=(LEAK,) if leaked else (),
    )
    seed = int(about.get("env_seed", -1))
    with RecordingWriter(
        out, control_hz=1.0, units=UNITS, provenance=provenance, plan={"imported": [p.name for p in paths]},
        sites={name: {"dtype": str(a.dtype), "pooling": "none"} for name, a in episodes[0][0].items()},
    ) as writer:  # fmt: skip
        for activations, covariates, complete in episodes:
            writer.append(activations, covariates, seed=seed, complete=complete)
        writer.finish()
    log.info("imported %d files%s", len(paths), "; CAVEAT: " + LEAK if leaked else "")
    return Recording(out)


def _files(source: str | Path | Sequence[str | Path]) -> list[Path]:
    given = [Path(source)] if isinstance(source, str | Path) else [Path(one) for one in source]
    if len(given) == 1 and given[0].is_dir():
        found = sorted(given[0].glob("episode_*.pkl")) or sorted(given[0].glob("*.npz"))
        if not found:
            raise EpisodesError(f"{given[0]} holds neither episode_*.pkl nor replay chunks (*.npz)")
        return found
    if not given or len({path.suffix for path in given} & {".pkl", ".npz"}) != 1 or len({p.suffix for p in given}) > 1:
        raise EpisodesError(f"give a folder, or episode_*.pkl or *.npz files, not {[str(p) for p in given]}")
    return given


def _metadata(folder: Path) -> dict[str, Any]:
    """What all_episodes.pkl or metadata.pkl beside the episodes says of the world."""
    for name in ("metadata.pkl", "all_episodes.pkl"):
        if (folder / name).is_file():
            found = load_arrays(folder / name)
            return {key: _plain(value) for key, value in found.items() if key != "episodes"}
    return {}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _pickle_episode(path: Path) -> tuple[Columns, Columns, bool]:
    found = load_arrays(path)
    if not isinstance(found, dict) or not {"player_pos", "action", "reward"} <= found.keys():
        raise EpisodesError(f"{path} is no episode of dreamerv3f: it holds no player_pos, action and reward")
    length = len(found["action"])
    activations = {name: found[key] for key, name in (("deter", "dynamics.deter"), ("stoch", "dynamics.stoch"))
                   if key in found}  # fmt: skip
    for key in found:
        if key.startswith("act/") and (name := site_name(key)) not in activations:
            activations[name] = np.asarray(found[key])
    is_last = np.arange(length) == length - 1
    covariates = {"is_first": np.arange(length) == 0, "is_last": is_last, "is_terminal": is_last & (length <= LONGEST)}
    covariates |= _common(found)
    for name in VITALS:
        if f"vital_{name}" in found:
            covariates[name] = np.asarray(found[f"vital_{name}"])
    if "achievements" in found:
        counts = found["achievements"]
        names = sorted(counts[0])
        covariates["achievements"] = np.array([[step[name] for name in names] for step in counts])
    for name, column in (activations | covariates).items():
        if len(column) != length:
            raise EpisodesError(f"{path}: {name} has {len(column)} rows, action has {length}")
    return activations, covariates, True


def _common(found: Mapping[str, Any]) -> Columns:
    action = np.asarray(found["action"], np.int64)
    covariates = {"pos": np.asarray(found["player_pos"]), "reward": np.asarray(found["reward"], np.float32)}
    covariates["action"] = action
    if "image" in found:
        covariates["obs.image"] = np.asarray(found["image"])
    if "player_facing" in found:
        covariates["facing"] = np.asarray(found["player_facing"])
    else:
        covariates["facing_from_actions"] = facing_from_actions(action)
    return covariates


def facing_from_actions(action: np.ndarray) -> np.ndarray:
    """(T,) Crafter actions -> (T, 2) the direction last moved in, (0, 1) before the first move, as Crafter has it.

    action[t] follows observation t. Moves turn the player even where something is in the way, but not while asleep,
    which actions do not tell.
    """
    moves = np.isin(action[:-1], list(MOVES))
    last = np.maximum.accumulate(np.concatenate([[-1], np.where(moves, np.arange(len(action) - 1), -1)]))
    table = np.array([(0, 1), *MOVES.values()])
    return table[np.where(last < 0, 0, action[last.clip(0)])]


def site_name(key: str) -> str:
    """"act/enc/cnn0" -> "encoder.cnn.0", under the names that torchmem's agents use."""
    rules = (
        (r"act/enc/(cnn|mlp)(\d+)", r"encoder.\1.\2"), (r"act/enc/tokens", "encoder"),
        (r"act/dyn/(deter|stoch)", r"dynamics.\1"), (r"act/pol/mlp/linear(\d+)", r"actor.mlp.\1"),
        (r"act/val/mlp/linear(\d+)", r"critic.mlp.\1"),
    )  # fmt: skip
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key.removeprefix("act/").replace("/", ".")


def _chunk_episodes(paths: Sequence[Path]) -> Iterator[tuple[Columns, Columns, bool]]:
    """Chunks name their successor (<time>-<id>-<next id>-<rows>.npz); a stream is cut where an episode begins."""
    named = {}
    for path in paths:
        parts = path.stem.split("-")
        if len(parts) != 4:
            raise EpisodesError(f"{path} is not named like a replay chunk: <time>-<id>-<next id>-<rows>.npz")
        named[parts[1]] = (path, parts[2])
    heads = [uid for uid in named if uid not in {after for _, after in named.values()}]
    for head in heads:
        rows: dict[str, list[np.ndarray]] = {}
        uid = head
        while uid in named:
            path, uid = named[uid]
            with np.load(path, allow_pickle=False) as chunk:
                missing = {"player_pos", "action", "reward", "is_first", "dyn/deter"} - set(chunk.files)
                if missing:
                    raise EpisodesError(f"{path} is no replay chunk of dreamerv3f: it holds no {sorted(missing)[0]}")
                for key in chunk.files:
                    rows.setdefault(key, []).append(chunk[key])
        stream = {key: np.concatenate(pieces) for key, pieces in rows.items()}
        bounds = sorted({0, len(stream["is_first"]), *np.flatnonzero(stream["is_first"]).tolist()})
        for start, stop in itertools.pairwise(bounds):
            part = {key: values[start:stop] for key, values in stream.items()}
            activations = {f"dynamics.{key[4:]}": part[key] for key in part if key.startswith("dyn/")}
            flags = {key: part[key] for key in ("is_first", "is_last", "is_terminal")}
            yield activations, flags | _common(part), bool(part["is_first"][0] and part["is_last"][-1])


def _position_free(episodes: Sequence[tuple[Columns, Columns, bool]]) -> bool:
    """Only recordings that list their layers can tell: a vector encoder means that the position went in."""
    sites = {name for activations, _, _ in episodes for name in activations}
    layers = {name for name in sites if name.startswith(("encoder.", "actor.", "critic."))}
    return bool(layers) and not any(name.startswith("encoder.mlp") for name in layers)


def _worlds(episodes: Sequence[tuple[Columns, Columns, bool]]) -> list[int] | None:
    """Worlds by first frame, where all episodes begin at one place (so that another frame means another world)."""
    firsts = [(c["pos"][0].tobytes(), c["obs.image"][0].tobytes()) for _, c, _ in episodes
              if "obs.image" in c and c["is_first"][0]]  # fmt: skip
    if len(firsts) < len(episodes) or len({place for place, _ in firsts}) > 1:
        return None
    frames = list(dict.fromkeys(frame for _, frame in firsts))
    return [frames.index(frame) for _, frame in firsts]
