"""print(model): the tree of sites, with shapes and cadence."""

from __future__ import annotations

from typing import Any

from torchmem.types import Site


def site_tree(model: Any) -> str:
    """One line per site, indented by its place in the module tree; aliases come first."""
    agent = model.agent
    parameters = sum(p.numel() for p in agent.parameters())
    head = f"Model of a {agent.config.name} agent for {agent.spec.name}"
    lines = [f"{head}: {parameters:,} parameters, {len(model.sites)} sites"]
    for name, site in model.sites.items():
        if name != site.path:
            lines.append(f"{name} = {site.path}  {_form(site)}")
    shown: set[str] = set()
    for path in sorted(site.path for name, site in model.sites.items() if name == site.path):
        parts = path.split(".")
        for depth in range(1, len(parts)):
            prefix = ".".join(parts[:depth])
            if prefix not in shown and prefix not in model.sites:
                lines.append("  " * (depth - 1) + parts[depth - 1])
            shown.add(prefix)
        lines.append("  " * (len(parts) - 1) + f"{parts[-1]}  {_form(model.sites[path])}")
        shown.add(path)
    return "\n".join(lines)


def _form(site: Site) -> str:
    sizes = " x ".join(map(str, site.shape)) or "scalar"
    return f"[B, T, {sizes}]" + (" per step" if site.cadence == "step" else "")
