"""Recordings of interpreting-rl-behavior, real (record.py) and simulated (record_gen_samples.py), as a Recording.

Their layout (spec simulator.md 2, 4, appendix A), T rows of an episode E:

    data_gen_model_E.csv            level_seed, episode, global_step, episode_step, done, reward, value, action
    episode_E/{ob,hx,lp}.npy        (T, 3, H, W) uint8; (T + 1, U) memory before each step and after the last; (T, A)
    idx_to_episode.csv, sample_E.mp4                                                    not read
    sample_N/{ims,rews,dones,agent_hs,agent_logprobs,agent_values,env_hs,bottleneck_vec}.npy      simulated

Reward and end come with the frame they led to, as ours do. But the frame of an episode's last row is black, put there
by the recorder as a mark: the agent saw the first frame of the next episode, so memory, value and action of that row
belong to it, and every later episode begins with its second frame. Nothing is unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from torchmem.errors import TorchmemError
from torchmem.recording import Recording, RecordingWriter
from torchmem.result import Provenance

log = logging.getLogger("torchmem")

COLUMNS = ("level_seed", "episode", "global_step", "episode_step", "done", "reward", "value", "action")
SAMPLE = ("ims", "rews", "dones", "agent_hs", "agent_logprobs", "agent_values", "env_hs", "bottleneck_vec")
BESIDE = {  # files that belong to a layout; what is not read
    "episode": r"data_gen_model_\d+\.csv|episode_\d+|idx_to_episode\.csv|sample_\d+\.mp4",
    "sample": r"sample_\d+|videos?|sample_\d+\.mp4",
}
INSIDE = {
    "episode": r"(ob|hx|lp)\.npy",
    "sample": rf"({'|'.join(SAMPLE)})\.npy|grad_\w+\.npy|.*\.mp4",
}
CONTROL_HZ = 15.0  # the pace people play Procgen at
REAL = (
    "recorded by interpreting-rl-behavior: a noised policy, rewards of a drifting normaliser, the first frame of "
    "nearly every episode lost"
)
SIMULATED = "simulated by interpreting-rl-behavior: modes throughout, of a simulator whose fidelity was never measured"
UNITS = {
    "reward": "normalised reward", "reward_after": "normalised reward", "value": "discounted return", "action": "class",
    "logits.action": "nats", "level_seed": "level", "env_step": "steps", "is_first": "bool", "is_last": "bool",
    "is_terminal": "bool", "ended_after": "bool", "obs.image": "pixels",
}  # fmt: skip
Columns = dict[str, np.ndarray]


class OldRecordingError(TorchmemError):
    """A folder is not of that layout, or its files do not fit each other; the message names the file."""


def import_irl_recording(source: str | Path, out: str | Path, *, ends: str = "drop") -> Recording:
    """Write the Recording `out` from the folder of episode_* (or the one above, with data/) or of sample_*.

    Sites: memory, after each step; memory_before, before it (real ones); world and latent (simulated ones). Covariates:
    obs.image, action, value, logits.action (log-probabilities), reward, flags; of real ones reward_after and
    ended_after, what the action of a row led to, level_seed, env_step (0 is an episode's true first frame). ends:
    "drop" leaves the closing rows with their black frames out, so that an episode's last reward is in reward_after
    alone; "keep" has them as the original's simulator learnt from them, with the memory of the row before, no action,
    and value 0.

    An import that was broken off, by a file that does not fit or by a kill, goes on where the same call is made again.

    Raises OldRecordingError, naming the file, also for files that are not of this layout; FileExistsError.
    """
    if ends not in ("drop", "keep"):
        raise OldRecordingError(f"ends={ends!r}: drop or keep")
    folder = Path(source)
    if not folder.is_dir():
        raise OldRecordingError(f"{folder} is no folder: give the one that holds episode_00000 or sample_00000")
    folder = folder / "data" if (folder / "data").is_dir() else folder
    kind = next((k for k in BESIDE if any(p.is_dir() for p in folder.glob(f"{k}_[0-9]*"))), None)
    if kind is None:
        raise OldRecordingError(f"{folder} holds neither episode_* nor sample_* folders: it is no such recording")
    homes = _checked(folder, kind)
    about = {"importer": "interpreting-rl-behavior", "layout": kind, "ends": ends, "listing_sha256": _listing(homes)}
    with RecordingWriter(
        out, control_hz=CONTROL_HZ, units=UNITS, plan={"imported": str(folder), "ends": ends},
        provenance=Provenance.here(checkpoint=f"interpreting-rl-behavior: {folder}", config=about,
                                   caveats=(REAL if kind == "episode" else SIMULATED,)), resume=True,
    ) as writer:  # fmt: skip
        if writer.finished:
            raise FileExistsError(f"{out} already exists: choose another folder")
        empty, there = 0, len(writer.episodes)
        for activations, covariates, level in _episodes(homes, ends) if kind == "episode" else _samples(homes):
            if not len(covariates["reward"]):
                empty += 1
            elif there:
                there -= 1
            else:
                writer.append(activations, covariates, seed=level)
        writer.finish()
    log.info("imported %d %ss%s", len(homes) - empty, kind,
             f"; {empty} held nothing but a black frame" if empty else "")  # fmt: skip
    return Recording(out)


def _checked(folder: Path, kind: str) -> list[Path]:
    """The folders of all episodes or samples, in order, once every name is known."""
    homes = []
    for path in sorted(folder.iterdir()):
        if not re.fullmatch(BESIDE[kind], path.name):
            raise OldRecordingError(f"{path} is not of this layout: move it away, or give another folder")
        if not re.fullmatch(rf"{kind}_\d+", path.name) or not path.is_dir():
            continue
        names = {one.name for one in path.iterdir()}
        strange = sorted(name for name in names if not re.fullmatch(INSIDE[kind], name))
        if strange:
            raise OldRecordingError(f"{path / strange[0]} is not of this layout: move it away")
        wanted = SAMPLE if kind == "sample" else ("ob", "hx", "lp")
        missing = [f"{name}.npy" for name in wanted if f"{name}.npy" not in names]
        if missing:
            raise OldRecordingError(f"{path} lacks {', '.join(missing)}: remove the folder, it was not finished")
        homes.append(path)
    return homes


def _listing(homes: list[Path]) -> str:
    """Names and sizes of what is read: quicker than the content of some hundred GB."""
    total = hashlib.sha256()
    for home in homes:
        for path in sorted(home.glob("*.npy")):
            total.update(f"{home.name}/{path.name} {path.stat().st_size}\n".encode())
    return total.hexdigest()


def _array(path: Path, axes: int, length: int | None = None) -> np.ndarray:
    """A plain array with this many axes, so long. numpy's own reader, which here refuses pickled objects."""
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise OldRecordingError(f"{path} is no plain array: {error}") from error
    if not isinstance(found, np.ndarray):
        raise OldRecordingError(f"{path} is an archive, no single array")
    if found.ndim == axes + 1 and found.shape[-1] == 1:
        found = found[..., 0]
    if found.ndim == axes - 1 and length == 1:
        found = found[None]  # the recorder squeezes
    if found.ndim != axes or (length is not None and len(found) != length):
        raise OldRecordingError(f"{path} has shape {found.shape}; expected {axes} axes, the first of {length or 'any'}")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise OldRecordingError(f"{path} holds NaN or infinity")
    return found


def _table(path: Path) -> dict[str, np.ndarray]:
    """The columns of one episode's csv, as floats."""
    if not path.is_file():
        raise OldRecordingError(f"{path} is missing: the episode's rewards and actions are in it")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise OldRecordingError(f"{path} lacks {', '.join(missing)}: it is no table of record.py")
    words = {"True": 1.0, "False": 0.0}
    out = {}
    for name in COLUMNS:
        try:
            texts = [(row[name] or "").strip("[] ") for row in rows]
            out[name] = np.array([words[text] if text in words else float(text) for text in texts])
        except ValueError as error:
            raise OldRecordingError(f"{path}: {name} holds what is no number ({error})") from error
    return out


def _episodes(homes: list[Path], ends: str) -> Iterator[tuple[Columns, Columns, int]]:
    for home in homes:
        number = home.name.removeprefix("episode_")
        table = _table(home.parent / f"data_gen_model_{number}.csv")
        rows = len(table["done"])
        frames, states = _array(home / "ob.npy", 4, rows), _array(home / "hx.npy", 2, rows + 1)
        logp, done = _array(home / "lp.npy", 2, rows), table["done"] > 0.5
        if frames.dtype != np.uint8 or frames.shape[1] != 3:
            raise OldRecordingError(f"{home / 'ob.npy'} is {frames.dtype} {frames.shape}, no frames (T, 3, H, W)")
        black = np.logical_not(frames.reshape(rows, -1).max(1))
        if not done[-1] or done[:-1].any():
            raise OldRecordingError(f"{home.parent}: the table of episode {number} must be done in its last row alone")
        if not black[-1] or black[:-1].any():
            raise OldRecordingError(f"{home / 'ob.npy'} must be black in its last frame alone: it is not record.py's")
        kept, reward = rows - 1, table["reward"].astype(np.float32)
        level = _level(table["level_seed"])
        covariates = {
            "obs.image": np.ascontiguousarray(frames[:kept].transpose(0, 2, 3, 1)),
            "action": table["action"][:kept].astype(np.int64),
            "value": table["value"][:kept].astype(np.float32), "logits.action": logp[:kept].astype(np.float32),
            "reward": reward[:kept], "reward_after": reward[1:], "ended_after": done[1:],
            "is_first": np.arange(kept) == 0, "is_last": np.arange(kept) == kept - 1,
            "is_terminal": np.zeros(kept, bool), "level_seed": np.full(kept, level),
            "env_step": table["episode_step"][:kept].astype(np.int64),
        }  # fmt: skip
        # row t saw its frame with the memory hx[t] and went on with hx[t + 1]
        activations = {"memory": states[1:-1].astype(np.float32), "memory_before": states[:-2].astype(np.float32)}
        if ends == "keep" and kept:
            closing = {name: np.zeros_like(values[:1]) for name, values in covariates.items()}
            closing |= {"reward": reward[-1:], "level_seed": covariates["level_seed"][:1]}
            closing |= {"is_last": np.ones(1, bool), "is_terminal": np.ones(1, bool)}
            closing["env_step"] = covariates["env_step"][-1:] + 1
            covariates["is_last"][-1] = False
            covariates = {name: np.concatenate([values, closing[name]]) for name, values in covariates.items()}
            held = activations["memory"][-1:]
            activations = {name: np.concatenate([values, held]) for name, values in activations.items()}
        yield activations, covariates, level


def _level(told: np.ndarray) -> int:
    """Told by what came after each action: the last two rows are of the next level, the first may be of another."""
    inner = told[1:-2] if len(told) > 3 else told[:1]
    return int(Counter(inner.tolist()).most_common(1)[0][0])


def _samples(homes: list[Path]) -> Iterator[tuple[Columns, Columns, int]]:
    for home in homes:
        frames = _array(home / "ims.npy", 4)
        steps = len(frames)
        if frames.dtype != np.uint8 or frames.shape[-1] != 3:
            raise OldRecordingError(f"{home / 'ims.npy'} is {frames.dtype} {frames.shape}, no frames (T, H, W, 3)")
        one = {name: _array(home / f"{name}.npy", 1, steps) for name in ("rews", "dones", "agent_values")}
        logp = _array(home / "agent_logprobs.npy", 2, steps)
        latent = _array(home / "bottleneck_vec.npy", 1)
        covariates = {
            "obs.image": frames, "reward": one["rews"].astype(np.float32), "done": one["dones"].astype(np.float32),
            "value": one["agent_values"].astype(np.float32), "logits.action": logp.astype(np.float32),
            "action": logp.argmax(-1).astype(np.int64), "is_first": np.arange(steps) == 0,
            "is_last": np.arange(steps) == steps - 1, "is_terminal": np.zeros(steps, bool),
        }  # fmt: skip
        activations = {
            "memory": _array(home / "agent_hs.npy", 2, steps).astype(np.float32),
            "world": _array(home / "env_hs.npy", 2, steps).astype(np.float32),
            "latent": np.repeat(latent.astype(np.float32)[None], steps, 0),
        }
        yield activations, covariates, -1
