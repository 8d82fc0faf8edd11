"""The kernel's rule sets, and which of them may hold rules of ours.

Three rule sets apply to each packet, and the tools of one do not see the others: legacy xtables, nf_tables as iptables uses
it, and native nftables. A pod that was set up through another backend must not end up with both plans, so the engine asks
here for the rule sets that its own backend does not read.
"""

from __future__ import annotations

from istio_init.core.errors import NotPermitted
from istio_init.core.light import TYPE_CHECKING, StrEnum
from istio_init.rules.kernel.legacy import legacy_tables
from istio_init.rules.kernel.nf_tables import chains, inet_tables
from istio_init.rules.model import CHAINS_OF, NFT_TABLE

if TYPE_CHECKING:
    from collections.abc import Collection

    from istio_init.rules.model import Family

# Istio 1.30, tools/istio-nftables/pkg/constants: tables of the family inet.
ISTIO_TABLES = frozenset({"istio-proxy-nat", "istio-proxy-mangle", "istio-proxy-raw"})
OWN = {table.value: names for table, names in CHAINS_OF.items()}


class RuleSet(StrEnum):
    """A rule set of the kernel that can hold our rules."""

    IPTABLES_NFT = "iptables-nft"
    NATIVE = "nft"
    LEGACY = "iptables-legacy"
    ISTIO_NATIVE = "nft of istio-iptables"


def occupied(families: Collection[Family], known: Collection[RuleSet]) -> dict[RuleSet, tuple[Family, ...]]:
    """Return the rule sets, other than `known`, that may hold rules of ours, each with the families concerned.

    Where this process may not ask the kernel, but programs with capabilities of their own may, each may hold some.

    Raises:
        Unsupported: the chains of nf_tables could not be read.
    """
    found: dict[RuleSet, tuple[Family, ...]] = {}
    for family in families:
        present = dict.fromkeys(RuleSet, True)
        present[RuleSet.LEGACY] = RuleSet.LEGACY not in known and bool(legacy_tables(family))
        try:
            listed = chains(family)
            present[RuleSet.IPTABLES_NFT] = any(name in OWN.get(table, ()) for table, name in listed)
            present[RuleSet.NATIVE] = any(table == NFT_TABLE for table, _ in listed)
            present[RuleSet.ISTIO_NATIVE] = bool(inet_tables() & ISTIO_TABLES)
        except NotPermitted:
            present[RuleSet.ISTIO_NATIVE] = False  # only this process could remove them
        for rule_set, is_there in present.items():
            if is_there and rule_set not in known:
                found[rule_set] = (*found.get(rule_set, ()), family)
    return found


def foreign_tables(family: Family, known: RuleSet) -> frozenset[str]:
    """Return the tables of nf_tables that may hold third-party rules; none if this process may not ask.

    Args:
        family: whose packets pass them; those of the family inet are included.
        known: the rule set that was read, whose tables are left out.

    Raises:
        Unsupported: they could not be listed.
    """
    try:
        found = {table for table, _ in chains(family)} | inet_tables()
    except NotPermitted:  # only programs with capabilities of their own may
        return frozenset()
    of_iptables = set(OWN) if known is RuleSet.IPTABLES_NFT else set()
    return frozenset(found - {NFT_TABLE} - ISTIO_TABLES - of_iptables)
