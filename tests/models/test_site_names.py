"""Every site has a meaning, every meaning a site, the same word the same role; and docs/sites.md says what is."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import pytest
import torch

from torchmem import cli
from torchmem.models.checkpoint import save_agent
from torchmem.models.site_names import MEANINGS, PREFIXES, ROLES, aliases, canonical, meaning
from torchmem.models.site_table import examples, matching, page, shown, text
from torchmem.types import Site


@pytest.fixture(scope="module")
def agents():
    return examples()


@pytest.fixture(scope="module")
def sites(agents):
    return {name: canonical(agent.sites) for name, agent in agents.items()}


def test_the_committed_page_is_up_to_date():
    random = torch.get_rng_state()
    found = (Path(__file__).parents[2] / "docs" / "sites.md").read_text()
    assert found == page(), "run python -m torchmem.models.site_table"
    assert torch.equal(random, torch.get_rng_state())


def test_every_listed_site_has_a_meaning_and_every_meaning_a_site(sites):
    paths = {site.path for found in sites.values() for site, _ in shown(found)}
    assert not sorted(path for path in paths if meaning(path) is None)
    names = {name for found in sites.values() for name in found}
    unused = [pattern for pattern in MEANINGS if not any(fnmatch.fnmatchcase(name, pattern) for name in names)]
    assert not unused


def test_the_same_words_name_the_same_roles_in_every_agent(sites):
    """Recurrent agents share memory, gates, actor and critic; each alias is a place the agent has."""
    for title, found in sites.items():
        expected = {"memory", "core.state", "encoder", "actor.mlp", "actor.out.action", "critic", "critic.out"}
        if "R2I" in title:
            expected |= {"s5.0.state", "core.layers.0.gate", "dynamics.deter"}
        elif "without memory" not in title.lower():
            expected |= {"core.candidate"}
        if "GRU" in title or "Dreamer" in title:
            expected |= {"core.reset", "core.update"}
        assert expected <= found.keys(), title
        assert found["memory"].path == found["core.state"].path
        for name, site in found.items():
            assert found[site.path].path == site.path and name == site.name
            assert (site.shape, site.cadence) == (found[site.path].shape, found[site.path].cadence)


def test_gates_of_the_same_name_do_the_same(agents):
    """In every agent with an update gate: new state = update * candidate + (1 - update) * old state."""
    for title, agent in agents.items():
        names = canonical(agent.sites)
        if "core.update" not in names:
            continue
        seen: dict[str, list[torch.Tensor]] = {}
        for name in ("core.update", "core.candidate", "memory"):
            module = agent.get_submodule(names[name].path)
            module.register_forward_hook(lambda m, i, out, name=name, seen=seen: seen.setdefault(name, []).append(out))
        space = agent.spec
        obs = {k: torch.zeros(2, 3, *s.shape, dtype=getattr(torch, s.dtype)) for k, s in space.obs.items()}
        actions = {k: torch.zeros(2, 3, dtype=torch.int32) for k in space.action}
        with torch.no_grad():
            agent.unroll(obs, actions, torch.zeros(2, 3, dtype=torch.bool), agent.initial(2))
        for t in (1, 2):
            update, candidate, old = seen["core.update"][t], seen["core.candidate"][t], seen["memory"][t - 1]
            torch.testing.assert_close(seen["memory"][t], update * candidate + (1 - update) * old, msg=title)


def test_a_path_never_gives_way_to_an_alias():
    places = {p: Site(p, p, ("B", "N"), (n,), "step") for p, n in {"core.state": 3, "dynamics.deter": 4}.items()}
    found = canonical(places)
    assert found["core.state"].shape == (3,) and found["memory"].path == "dynamics.deter"
    assert aliases(found, "dynamics.deter") == ["memory"]
    assert canonical({}) == {} and ROLES and PREFIXES


def test_patterns_fit_any_name_of_a_place(sites):
    found = next(iter(sites.values()))
    assert set(matching(found, "memory")) == {"dynamics.deter"}
    assert "dynamics.core.update" in matching(found, "core.*") and "encoder" not in matching(found, "core.*")
    with pytest.raises(ValueError, match=r"no site fits 'cores\.\*'"):
        matching(found, "cores.*")
    assert "memory" in text(found) and "Update gate" in text(found)


def test_the_command_lists_the_sites_of_a_run(agents, tmp_path, capsys):
    folder = save_agent(agents["Without memory (`agent.core=mlp`)"], tmp_path / "agent")
    assert cli.main(["sites", str(folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("core.state") and " memory " in line for line in said) and len(said) > 10
    assert cli.main(["sites", str(folder), "nothing"]) == 2
    assert "no site fits 'nothing'" in capsys.readouterr().err
