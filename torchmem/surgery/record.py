"""record: let an agent play whole episodes and keep what its sites held, beside all that is known of the world."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from torchmem.envs.collector import Collector, leaking
from torchmem.envs.make import env_spec
from torchmem.envs.tensor_vector import TensorVector
from torchmem.envs.vector import VectorEnv
from torchmem.models.checkpoint import plain
from torchmem.recording import Recording, RecordingError, RecordingWriter
from torchmem.result import Provenance
from torchmem.surgery.behaviour_mix import Behaviour, Mixer
from torchmem.surgery.edit import Edits
from torchmem.surgery.read_out import ReadOut
from torchmem.surgery.schedule import EpisodeNoise, Finished, Schedule
from torchmem.surgery.tape import BLOCK, Tape
from torchmem.types import EnvSpec, Site, Space

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
POOLING = ("none", "mean")
MOST = 2  # finished episodes per world that wait for the writer, at most
OWN = Behaviour()
log = logging.getLogger("torchmem")


def record(
    model: Any,
    env: str | None = None,
    sites: str | Sequence[str] = ("memory",),
    *,
    episodes: int = 20,
    seed: int = 0,
    envs: int = 16,
    workers: int = 0,
    batched: bool = False,
    greedy: bool = False,
    out: str | Path | None = None,
    edits: Any = (),
    behaviour: Behaviour = OWN,
    dtype: str | Mapping[str, str] = "float32",
    pooling: str | Mapping[str, str] = "none",
    observations: bool = True,
    resume: bool = False,
    env_kwargs: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Recording:
    """Play `episodes` whole episodes, an equal number in each of `envs` worlds, and return what was recorded.

    model: from `torchmem.load`. env, env_kwargs: the world; default, the one the agent was made for. sites: names, or
    patterns with `*`, which take every site that runs while acting; one text may hold several, apart by spaces.
    greedy: take the likeliest action (latents are sampled either way). edits: hold throughout, beside those that hold
    on the model already. behaviour: what it does in place of its own choices (value and logits stay what it thinks).
    dtype: float32, float16 or bfloat16 of all sites, or by pattern ({"dynamics.*": "bfloat16"},
    the rest float32). pooling: likewise; "mean" averages maps over height and width. observations: keep them too, as
    `obs.<key>`. workers: processes for the worlds. batched: worlds that step at once by table lookup (`TensorVector`:
    MiniGrid's memory worlds), for thousands of `envs`; starts of the same distribution, not of the same seeds.

    Covariates: reward, flags, actions (zero at is_last), value and logits (or mean and std) as the agent reads them
    out of its carry, every key of the world's truth. Seeds are of the split "record": no training or evaluation has
    seen them. An episode depends on `seed`, its world's number and `envs` alone, not on its neighbours or on how often
    a recording was interrupted.

    out: a new folder; None: a temporary one that goes when the Recording does. resume: go on with the unfinished
    recording in `out`, made with the same arguments. Open episodes are held in memory until they end.

    Raises UnknownSite, ValueError for arguments that do not fit, RecordingError for a site that does not run while
    acting, FileExistsError where `out` holds something else.
    """
    asked = (sites if isinstance(sites, str) else " ".join(sites)).split()
    chosen = choose(model, asked)
    kinds = spread(dtype, chosen, "dtype", tuple(DTYPES), "float32")
    pools = spread(pooling, chosen, "pooling", POOLING, "none")
    if batched and workers:
        raise ValueError(f"batched worlds step in this process: leave workers={workers}")
    name = env or model.spec.name
    kwargs = dict(model.spec.kwargs if env_kwargs is None and name == model.spec.name else env_kwargs or {})
    spec = env_spec(name, **kwargs)
    check_world(spec, model.spec)
    schedule = Schedule(episodes, envs, seed)
    with ExitStack() as stack:
        if len(added := Edits.of(edits)):
            stack.enter_context(model.edited(added))
        held = [{"edit": edit.describe(), "digest": edit.digest} for edit in model.edits]
        weights = weights_hash(model.agent)
        mixed = {} if behaviour.own else {"behaviour": dataclasses.asdict(behaviour)}
        temporary = TemporaryDirectory(prefix="torchmem-recording-") if out is None else None
        folder = Path(temporary.name if temporary else str(out))
        plan = {
            "env": name, "kwargs": plain(kwargs), "sites": asked, "episodes": episodes, "seed": seed,
            "envs": schedule.n, "greedy": greedy, "edits": held, "dtype": kinds, "pooling": pools,
            "observations": observations, "weights": weights, **mixed, **({"batched": True} if batched else {}),
        }  # fmt: skip
        provenance = Provenance.here(
            checkpoint=str(model.path) if model.path else None, weights=weights,
            config=plain(dataclasses.asdict(model.agent.config)), seeds={"record": seed}, edits=tuple(held),
            caveats=(*model.caveats, *([f"behaviour mixed: {behaviour.describe()}"] if mixed else [])),
        )  # fmt: skip
        writer = stack.enter_context(RecordingWriter(
            folder, control_hz=spec.control_hz, units=units_of(spec), plan=plan,
            sites={n: {"dtype": kinds[n], "pooling": pools[n], "path": s.path} for n, s in chosen.items()},
            provenance=provenance, resume=resume,
        ))  # fmt: skip
        if not writer.finished:
            how = {"split": "record", "seed": seed}
            worlds = stack.enter_context(
                TensorVector(name, kwargs, schedule.n, **how) if batched
                else VectorEnv(name, kwargs, schedule.n, **how, workers=workers, on_error="raise")
            )  # fmt: skip
            worlds = leaking(worlds, model.spec)
            session = _Session(model, worlds, schedule, chosen, kinds, pools, greedy, observations)
            session.mixer = Mixer(behaviour, model.agent, schedule.n) if mixed else None
            session.run(writer, progress, {n for n in asked if n in chosen})
            writer.finish()
    rec = Recording(folder)
    return rec.keep_only_while_used(temporary) if temporary else rec


class _Session:
    """One sitting of a recording."""

    def __init__(
        self, model: Any, worlds: VectorEnv | TensorVector, schedule: Schedule, chosen: Mapping[str, Site],
        kinds: Mapping[str, str], pools: Mapping[str, str], greedy: bool, observations: bool,
    ) -> None:  # fmt: skip
        self.model, self.worlds, self.schedule = model, worlds, schedule
        self.chosen, self.kinds, self.pools = dict(chosen), kinds, pools
        self.greedy, self.observations = greedy, observations
        self.tape = Tape({f"activations/{name}": DTYPES[kind] for name, kind in kinds.items()})
        self.noise = EpisodeNoise(schedule.n, model.agent.device, model.agent.acting_noise)
        self.collector = Collector(worlds, model.initial(schedule.n), model.agent.device)
        self.ran: list[str] = []  # sites in the order of their turns, until the first step is over
        self.thoughts = ReadOut(model, self.tape)
        self.mixer: Mixer | None = None
        self.finished: deque[Finished] = deque()  # episodes on the tape that the writer has not got yet

    def run(self, writer: RecordingWriter, progress: bool, named: set[str]) -> None:
        """Play until every quota is filled. named: sites that must run (the others came from a pattern)."""
        self.schedule.skip(writer.episodes)
        state = self.worlds.state_dict()  # no episode is open: only the count of each world matters
        self.worlds.load_state_dict(state | {"episode": self.schedule.played - 1})
        total, done = int(self.schedule.quota.sum()), len(writer.episodes)
        with tqdm(total=total, initial=done, unit="episode", disable=not progress) as bar, self._watching():
            try:
                while not self.schedule.done:
                    self._step(named)
                    self._hand_over(writer, bar, wait=len(self.finished) > MOST * self.schedule.n)
            except (RecordingError, OSError):
                raise  # the writer cannot take them
            except BaseException:  # what is complete is not lost
                self._hand_over(writer, bar, wait=True)
                raise
            self._hand_over(writer, bar, wait=True)

    def _step(self, named: set[str]) -> None:
        """One lock-step, and where it fills a block, the episodes that are complete."""
        data = self.collector.step(self._act)
        self._note(data)
        if self.tape.step == 0:
            self._refuse_silent_sites(named)
        sealed = self.tape.advance()
        if sealed:
            self.thoughts.settle()
        for row, _, _ in self.collector.finished:
            self.schedule.ended(row, self.tape.step)
        if sealed or self.schedule.done:
            self.tape.seal()
            self.thoughts.settle()
            self.finished += self.schedule.ready(self.tape.sealed_to, self.tape.step)

    def _act(self, obs: Mapping[str, Tensor], carry: Any) -> tuple[dict[str, Tensor], Any, dict[str, Tensor]]:
        for row in torch.nonzero(obs["is_first"]).flatten().tolist():
            self.noise.begin(row, self.schedule.seed_of(row))
            if self.mixer is not None:
                self.mixer.begin(row, self.schedule.seed_of(row))
            self.schedule.began(row, self.tape.step)
        noise = self.noise.step()
        if self.greedy:
            noise = dataclasses.replace(noise, action=None)
        if self.mixer is not None:
            noise = self.mixer.heat(noise)
        # for conditions of edits; the agent does not get it
        self.model._bench.truth = {key: torch.as_tensor(value) for key, value in self.collector.truth.items()}
        actions, carry = self.model.act(obs, carry, noise)
        self.thoughts.note(carry)
        if self.mixer is not None:
            actions, carry = self.mixer.act(obs["is_first"], actions, carry)
        return actions, carry, {}

    def _hand_over(self, writer: RecordingWriter, bar: tqdm, wait: bool) -> None:
        """Finished episodes to the writer. While it writes, they stay on the tape, unless `wait`: play goes on."""
        before = len(self.finished)
        while self.finished and (wait or not writer.busy):
            one = self.finished.popleft()
            groups: dict[str, dict[str, Any]] = {"activations": {}, "covariates": {}}
            for address, pieces in self.tape.cut(one.row, one.start, one.stop).items():
                group, _, name = address.partition("/")
                if group == "activations" and self.kinds[name] == "float16":
                    if not all(np.isfinite(piece).all() for piece in pieces):
                        raise RecordingError(f"site {name} leaves the range of float16: record bfloat16 or float32")
                groups[group][name] = pieces
            writer.append(groups["activations"], groups["covariates"], seed=one.seed)
            bar.update()
        if len(self.finished) < before:
            self.tape.forget(min([self.schedule.needed_from(self.tape.step), *(one.start for one in self.finished)]))

    def _note(self, data: Mapping[str, np.ndarray | Tensor]) -> None:
        seen = self.worlds.spec.obs
        for name, value in data.items():
            if name not in seen:
                self.tape.put(f"covariates/{name}", value)
            elif self.observations:
                self.tape.put(f"covariates/obs.{name}", value)
        for name, value in self.collector.truth.items():
            if not self.tape.put(f"covariates/{name}", value):
                raise RecordingError(f"the truth {name!r} of {self.worlds.name} has the name of another covariate")

    # Sites -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Plain hooks on the modules of the chosen sites."""
        handles = []
        try:
            for name, site in self.chosen.items():
                module = self.model.agent.get_submodule(site.path)
                handle = module.register_forward_hook(functools.partial(self._keep, name, site))
                handles.append(handle)
                if self.model.edits:
                    # the hooks of edits come and go with every pass: be behind them, to see edited values
                    handles.append(module.register_forward_pre_hook(functools.partial(_to_the_end, handle.id)))
            yield
        finally:
            self.model._bench.truth = None
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, site: Site, module: nn.Module, args: Any, value: Any) -> None:
        mode = self.thoughts.mode
        shape = (self.schedule.n * (BLOCK if mode == "block" else 1), *site.shape)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RecordingError(f"site {name} gave {got} while acting, expected {shape}")
        if self.tape.step == 0 and name not in self.ran:
            self.ran.append(name)
            if mode == "probe":
                self.thoughts.late.add(name)
        if mode == "probe" or (mode == "block" and name not in self.thoughts.late):
            return
        if self.pools[name] == "mean":
            value = pooled(value, site)
        (self.thoughts.add if mode else self.tape.put)(f"activations/{name}", value)

    def _refuse_silent_sites(self, named: set[str]) -> None:
        """After the first step: sites named in full must have run; those that a pattern found are let go."""
        silent = sorted(self.chosen.keys() - set(self.ran))
        asked = [name for name in silent if name in named]
        if asked or not self.ran:
            raise RecordingError(
                f"{', '.join(asked or silent)} does not run while the agent acts (only while it learns or unrolls): "
                f"record other sites, or read it with model.trace"
            )
        if silent:
            log.info("not recorded, since they do not run while the agent acts: %s", ", ".join(silent))


def _to_the_end(hook: int, module: nn.Module, args: Any) -> None:
    hooks: Any = module._forward_hooks  # an OrderedDict
    hooks.move_to_end(hook)


def choose(model: Any, patterns: Sequence[str]) -> dict[str, Site]:
    """The sites that names and patterns mean, in the model's order. Raises UnknownSite, ValueError for none."""
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in model.sites or not set(pattern) & set("*?["):
            chosen.add(model.find(pattern).name)  # raises UnknownSite
            continue
        found = fnmatch.filter(model.sites, pattern)
        if not found:
            raise ValueError(f"no site matches {pattern!r}; print(model) lists all")
        chosen.update(found)
    if not chosen:
        raise ValueError("no site to record: give names or patterns, such as 'memory' or 'dynamics.*'")
    return {name: site for name, site in model.sites.items() if name in chosen}


def spread(
    setting: str | Mapping[str, str], names: Iterable[str], what: str, valid: Sequence[str], default: str
) -> dict[str, str]:
    """One setting for every name: the same for all, or by pattern, the first that matches. Raises ValueError."""
    rules = {"*": setting} if isinstance(setting, str) else dict(setting)
    wrong = [value for value in rules.values() if value not in valid]
    if wrong:
        raise ValueError(f"{what} must be one of {', '.join(valid)}; got {wrong[0]!r}")
    names = list(names)
    idle = [rule for rule in rules if not fnmatch.filter(names, rule)]
    if idle:
        raise ValueError(f"{what}: {idle[0]!r} matches none of the recorded sites {', '.join(names)}")
    return {name: next((v for rule, v in rules.items() if fnmatch.fnmatch(name, rule)), default) for name in names}


def pooled(value: Tensor, site: Site) -> Tensor:
    """Maps (B, H, W, C) averaged to (B, C); everything else as it is."""
    inner = site.axes[len(site.axes) - len(site.shape) :]
    over = [1 + i for i, axis in enumerate(inner) if axis in ("H", "W")]
    return value.mean(over) if over else value


def check_world(world: EnvSpec, agent: EnvSpec) -> None:
    """Raise ValueError where an agent made for one spec cannot act in another world."""
    for kind, has, needs in (("observation", world.obs, agent.obs), ("action", world.action, agent.action)):
        for key, space in needs.items():
            if not _fits(has.get(key), space) and key not in agent.leaked:
                raise ValueError(
                    f"this agent cannot act in {world.name}: {kind} {key!r} is {has.get(key)}, it needs {space}; "
                    f"give env_kwargs that fit"
                )
    if extra := set(world.action) - set(agent.action):
        raise ValueError(f"this agent cannot act in {world.name}: it has no action {sorted(extra)[0]!r}")


def _fits(has: Space | None, needs: Space) -> bool:
    """Whether one is as good as the other: integers of another width are."""
    if has is None or has == needs:
        return has == needs
    integers = has.discrete and needs.discrete and "bool" not in (has.dtype, needs.dtype)
    return integers and (has.shape, has.classes) == (needs.shape, needs.classes)


def units_of(spec: EnvSpec) -> dict[str, str]:
    """Units of the covariates of a world."""
    units = {"reward": "reward", "value": "discounted return", "is_first": "", "is_last": "", "is_terminal": ""}
    for key, space in spec.action.items():
        units |= {key: "class", f"logits.{key}": "nats"} if space.discrete else {}
    return units | dict(spec.truth)


def weights_hash(agent: Any) -> str:
    """sha256 of the weights as `save_agent` would write them: an unchanged agent has the hash in its agent.json."""
    state = {name: value.detach().cpu().contiguous() for name, value in agent.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
