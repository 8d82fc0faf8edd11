"""The tables of nftables that today's istio-iptables makes with --native-nftables, to be replaced by a plan and cleaned.

They are of the family inet, which is for IPv4 and IPv6 at once. Names: Istio 1.30, tools/istio-nftables/pkg/constants.
"""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.kernel import nf_tables
from istio_init.rules.kernel.backend import BOTH_FAMILIES, Backend, Changes, Partial, Readings, Whole
from istio_init.rules.kernel.rule_sets import ISTIO_TABLES, RuleSet
from istio_init.rules.model import Family, Table, TableState, Variant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.core.errors import IstioInitError

WHERE = "today's istio-iptables made tables of nftables for both families at once (inet istio-proxy-*)"


class IstioTables(Backend):
    """Finds and removes these tables. To the engine, each is a chain in the filter table of IPv4."""

    name = "nft of istio-iptables"
    rule_sets = frozenset({RuleSet.ISTIO_NATIVE})
    all_or_nothing = True

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return nf_tables, the only kernel interface that this reaches."""
        return dict.fromkeys(families, Variant.NFT)

    def read(self, families: tuple[Family, ...]) -> Readings:
        """List the tables; they cannot be removed for one family alone."""
        if families != BOTH_FAMILIES:
            return {family: Partial({}, Unsupported(f"{WHERE}; leave out --family to replace them")) for family in families}
        found = sorted(nf_tables.inet_tables() & ISTIO_TABLES)
        return {Family.IPV4: Whole({Table.FILTER: TableState(dict.fromkeys(found, ()))}), Family.IPV6: Whole({})}

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Refuse: this backend cannot write a plan."""
        return dict.fromkeys(tables, "rules of a plan cannot be written into these tables")

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Delete the tables in one transaction."""
        dropped = [name for wanted in changes.values() for change in wanted for name in change.dropped]
        if any(change.chains for wanted in changes.values() for change in wanted):
            return dict.fromkeys(changes, Unsupported("tables of istio-iptables cannot be put back; run it again"))
        try:
            nf_tables.change([nf_tables.delete_inet_table(name) for name in dropped])
        except Unsupported as error:
            return dict.fromkeys(changes, error)
        return {}
