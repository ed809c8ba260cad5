"""Model: an agent opened up. Acts, unrolls and imagines like the agent, and every value and weight can be had.

    model = torchmem.load("runs/maze")
    with model.trace(obs):
        h = model.site("memory").save()
    with model.edited([Ablate("memory", units=(3, 7))]):
        model.act(obs, carry)
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from torchmem.models import checkpoint
from torchmem.models.noise import Noise
from torchmem.surgery import cache
from torchmem.surgery.edit import Edits
from torchmem.surgery.handle import SiteHandle
from torchmem.surgery.items import TraceError
from torchmem.surgery.overlay import guard_training
from torchmem.surgery.passes import Bench, Standing
from torchmem.surgery.play import play
from torchmem.surgery.request import Request, dream, sequence
from torchmem.surgery.selection import SiteEdit
from torchmem.surgery.trace import TraceVerb, Tree
from torchmem.surgery.weight_edit import WeightEdit
from torchmem.types import EnvSpec, Site


class UnknownSite(TraceError):
    """No site of that name; the message has the nearest ones."""


class Model:
    """An agent on the bench.

    agent: any `torchmem.models.protocol.Agent`. It is never touched: hooks, weight overlays and nnsight live on a
    second module tree over the same Parameters (`model.agent`), so an agent that trains compiled goes on doing so.
    Attributes that a Model does not have itself are nnsight's: `model.dynamics.core.output` inside a trace.
    """

    path: Path | None = None  # the agent folder it was loaded from
    caveats: tuple[str, ...] = ()  # what every summary and figure of its recordings must say

    def __init__(self, agent: Any) -> None:
        self._bench = Bench(agent)
        self._tree: Tree | None = None
        self.caveats = agent.spec.caveats

    # The agent -------------------------------------------------------------------------------------------------------

    @property
    def agent(self) -> Any:
        """The twin tree that edits act on; an Agent like any other."""
        return self._bench.tree

    @property
    def spec(self) -> EnvSpec:
        """The world that the agent was made for."""
        return self.agent.spec

    @property
    def sites(self) -> Mapping[str, Site]:
        """Every address, by name."""
        return self._bench.sites

    def site(self, name: str) -> SiteHandle:
        """The handle of a site. Raises UnknownSite with the nearest names."""
        return SiteHandle(self.find(name), lambda: self._bench.registry)

    def find(self, name: str) -> Site:
        """The Site of that name. Raises UnknownSite."""
        if name in self.sites:
            return self.sites[name]
        near = difflib.get_close_matches(name, self.sites, n=3, cutoff=0.4)
        raise UnknownSite(
            f"no site {name!r} in this {self.agent.config.name} agent"
            + (f"; nearest: {', '.join(near)}" if near else "")
            + "; print(model) lists all"
        )

    def initial(self, rows: int = 1) -> Any:
        """The empty carry of `rows` rows."""
        return self.agent.initial(rows)

    @torch.no_grad()
    def act(
        self, obs: Mapping[str, Any], carry: Any, noise: Noise | Literal["mode"] = "mode"
    ) -> tuple[dict[str, Tensor], Any]:
        """One step: obs[key] (B, ...) and `is_first` (B,) -> actions (B, ...), the next carry. Default: greedy."""
        seen = {key: torch.as_tensor(value, device=self.agent.device) for key, value in obs.items()}
        missing = [key for key in (*self.spec.obs, "is_first") if key not in seen]
        if missing:
            raise TraceError(f"observation {missing[0]!r} is missing; the agent needs {[*self.spec.obs, 'is_first']}")
        drawn = Noise.mode() if isinstance(noise, str) else noise
        actions, carry, _ = self.agent.policy(seen, carry, drawn)
        return actions, carry

    def unroll(self, obs: Any, actions: Any = None, is_first: Any = None, carry: Any = None, **given: Any) -> Any:
        """The outputs of the whole agent along sequences, without gradient. Arguments as for `trace`."""
        with torch.no_grad():
            return self._run(self._sequence(obs, actions, is_first, carry, **given))

    def observe(self, obs: Any, actions: Any = None, is_first: Any = None, carry: Any = None, **given: Any) -> Any:
        """States along sequences, without heads and decoder, without gradient: world-model agents. As `trace`."""
        if not hasattr(self.agent, "observe"):
            raise TraceError(f"a {self.agent.config.name} agent has no world model to observe with: use model.unroll")
        request = self._sequence(obs, actions, is_first, carry, **given)
        with torch.no_grad():
            return self.agent.observe(request.obs, request.actions, request.is_first, request.carry, request.noise)

    def imagine(self, carry: Any, horizon: int, **given: Any) -> Any:
        """Futures of `horizon` steps from each row of a carry, under the policy or `actions`. As `trace.imagine`."""
        with torch.no_grad():
            return self._run(dream(self.agent, carry, horizon, **given))

    def video(self, out: str | Path = "open_loop.gif", steps: int = 64, rows: int = 6, seed: int = 0) -> Path:
        """Play fresh episodes and write what the world model expects of them open-loop (truth, model, error) as a GIF.

        steps: agent steps, 5 of them observed. rows: episodes side by side. Raises TraceError where the agent has no
        world model or edits are in force (which the open-loop pass does not follow), ValueError where it sees no image.
        """
        from torchmem.surgery.film import film

        return film(self, out, steps, rows, seed)

    # Looking ---------------------------------------------------------------------------------------------------------

    @property
    def trace(self) -> TraceVerb:
        """`with model.trace(obs, actions, ...)`, `model.trace.imagine(carry, horizon)`, `model.trace.play(steps)`."""
        return TraceVerb(self)

    def run_with_cache(
        self, obs: Any, names_filter: str | Sequence[str] | Callable[[str], bool] | None = None, **given: Any
    ) -> tuple[Any, cache.SiteCache]:
        """Unroll and keep sites: (outputs, cache), cache["memory"] (B, T, ...), cache["memory", t] (B, ...).

        names_filter: a name, a list, patterns with `*`, or f(name) -> bool; default: every site that runs.
        """
        return cache.run_with_cache(self, obs, names_filter, **given)

    def run_with_hooks(self, obs: Any, fwd_hooks: Sequence[tuple[str, Callable]], **given: Any) -> Any:
        """Unroll with functions at sites: fn(value (B, L, ...), info) -> new value or None. Returns the outputs."""
        return cache.run_with_hooks(self, obs, fwd_hooks, **given)

    # Changing --------------------------------------------------------------------------------------------------------

    @contextmanager
    def edited(
        self, edits: Any, when: Callable[[Any], Any] | None = None, guard: bool = True
    ) -> Iterator[Model]:
        """Edits that hold in everything the model does inside the block: traces, acting, imagination, training.

        edits: one or a sequence of site edits and weight edits. when: f(Info) -> bool or mask, for site edits. Leaving
        the block, also by an exception, restores the agent bitwise; if something trained inside, base weights keep
        their updates, while entries that a mask removes keep their values and optimiser moments bit by bit (`guard`).
        Blocks nest: outer edits act first. Raises ValueError for an edit that does not fit.
        """
        chosen = Edits.of(edits)
        sites = tuple(edit for edit in chosen if isinstance(edit, SiteEdit))
        weights = [edit for edit in chosen if isinstance(edit, WeightEdit)]
        for edit in sites:
            edit.check(self.find(edit.site))
        for edit in weights:
            edit.check(self.agent)
        bench = self._bench
        standing = Standing(sites, when)
        outer = bench.standing, bench.weight_edits
        bench.standing, bench.weight_edits = [*outer[0], standing], [*outer[1], *weights]
        bench.episode_step = None
        try:
            if guard and weights:
                with guard_training(self.agent, weights):
                    yield self
            else:
                yield self
        finally:
            bench.standing, bench.weight_edits = outer

    @property
    def edits(self) -> list[Any]:
        """The edits in force, in order."""
        return [*(e for s in self._bench.standing for e in s.edits), *self._bench.weight_edits]

    # Inside ----------------------------------------------------------------------------------------------------------

    def _sequence(self, *args: Any, **given: Any) -> Request:
        return sequence(self.agent, *args, **given)

    def _run(self, request: Request) -> Any:
        if request.kind == "play":
            return play(self._bench, request)
        if request.kind == "imagine":
            return self.agent.imagine(request.carry, request.steps, request.noise, request.actions)
        return self.agent.unroll(request.obs, request.actions, request.is_first, request.carry, request.noise)

    def _nnsight(self) -> Tree:
        if self._tree is None:
            with warnings.catch_warnings():  # a submodule named `input` is `.E_input` to nnsight; sites do not care
                warnings.filterwarnings("ignore", "Module .* has a submodule named", UserWarning)
                self._tree = Tree(self.agent)
        return self._tree

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_bench" not in self.__dict__:
            raise AttributeError(name)
        if not hasattr(self.agent, name):
            raise AttributeError(f"neither a Model nor its {self.agent.config.name} agent has {name!r}")
        value = getattr(self.agent, name)
        return getattr(self._nnsight(), name) if isinstance(value, torch.nn.Module) else value

    def __repr__(self) -> str:
        from torchmem.surgery.listing import site_tree

        return site_tree(self)


def load(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """The agent of a run folder, a snapshot or an agent folder, opened up. Raises CheckpointError."""
    model = Model(checkpoint.load(path, device))
    model.path = checkpoint.find_agent(path)
    return model


def untrained(model: Model, seed: int = 0) -> Model:
    """The same kind of agent before learning, the control for what learning brought. Draws no global random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 99)
        agent = checkpoint.new_agent(model.spec, model.agent.config)
    fresh = Model(agent.to(model.agent.device))
    fresh.caveats += (f"untrained weights (seed {seed}) of the kind of {model.path or 'an agent in memory'}",)
    return fresh
