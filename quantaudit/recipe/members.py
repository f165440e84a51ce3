"""Which measured tensor each Linear reads, from a card alone."""

from __future__ import annotations

from quantaudit.card.schema import Card, SiteRow


def input_sites(card: Card) -> dict[str, SiteRow]:
    """Linear, by full path → the site that it reads; an expert's Linear reads its expert's tokens."""
    by_name = {site.name: site for site in card.sites}
    experts = {site.module: site for site in card.sites if site.kind == "expert_input"}
    found: dict[str, SiteRow] = {}
    for group, members in fused_groups(card).items():
        own = {_parent(module): experts[module] for module in members if module in experts}
        for member in members:
            site = own.get(_parent(member)) or by_name.get(f"{group}.input")
            if site is not None:
                found[member] = site
    return found


def fused_groups(card: Card) -> dict[str, list[str]]:
    """Fused group → full paths of its members."""
    if card.simulation is not None:
        return {row.group: row.members for row in card.simulation.groups}
    # Without a simulation a card names the first member of each group; the others are its siblings by name.
    from quantaudit.model.groups import FUSED

    linears = {module.name for module in card.model.modules if {"Linear", "Conv1D"} & set(module.classes)}
    groups: dict[str, list[str]] = {}
    for site in card.sites:
        if site.kind in ("linear_input", "expert_input"):
            stem, _, leaf = site.module.rpartition(".")
            leaves = next((fused for fused in FUSED.values() if leaf == fused[0]), (leaf,))
            siblings = [f"{stem}.{name}" if stem else name for name in leaves]
            groups[site.name.removesuffix(".input")] = [name for name in siblings if name in linears] or [site.module]
    return groups


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
