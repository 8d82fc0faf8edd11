"""Plan → text, for programs (`restore`, `commands`, `nft`, `json`) and for people (`table`)."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.model import Family, Variant
from istio_init.rules.render.iptables import render_commands, render_restore

if TYPE_CHECKING:
    from istio_init.rules.model import Plan


def render(
    plan: Plan,
    output_format: str = "restore",
    families: tuple[Family, ...] = tuple(Family),
    variant: Variant = Variant.PLAIN,
) -> str:
    """Return a plan as text that ends with a newline.

    Args:
        plan: the plan.
        output_format: `restore` (for `iptables-restore --noflush`, and for IPv6 `ip6tables-restore --noflush`),
            `commands` (for a shell), `nft` (for `nft -f`), `json` or `table`.
        families: the families to include.
        variant: the iptables variant whose binaries `commands` calls.

    Raises:
        InvalidInput: there is no such format.
        Unsupported: nft cannot express a rule.
    """
    plan = plan.only(families)
    if output_format == "json":
        from istio_init.rules.render.json import render_json

        return render_json(plan)
    if output_format == "table":
        from istio_init.rules.render.table import render_table

        return render_table(plan)
    if output_format == "nft":
        from istio_init.rules.render.nft import render_nft

        return render_nft(plan)
    if output_format == "restore":
        return _sections(plan, {family: render_restore(plan, family) for family in plan.families()})
    if output_format == "commands":
        return _sections(plan, {family: render_commands(plan, family, variant) for family in plan.families()})
    raise InvalidInput("format", f"{output_format!r} is not a format", "restore, commands, nft, json or table")


def _sections(plan: Plan, texts: dict[Family, str]) -> str:
    return "".join(f"# {plan.layout}, {family}\n{text}" for family, text in texts.items())
