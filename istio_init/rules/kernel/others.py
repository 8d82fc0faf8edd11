"""Rules of ours that were made through another backend than the one at work.

Three sets of rules apply to each packet and cannot see each other: legacy xtables, nf_tables as iptables uses it, and native
nftables. So that a pod that was set up with another backend before does not keep both plans, each backend asks here for the
sets that it does not read itself.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from istio_init.rules.kernel.legacy import legacy_tables
from istio_init.rules.kernel.nf_tables import chains
from istio_init.rules.model import NFT_TABLE, OWN_CHAINS, Table, Variant

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.backend import Backend
    from istio_init.rules.model import Family

TABLES = frozenset(table.value for table in Table)


class RuleSet(StrEnum):
    """One of the kernel's sets of rules that can hold ours."""

    LEGACY = "iptables-legacy"
    IPTABLES_NFT = "iptables-nft"
    NATIVE = "nft"


OF_VARIANT = {
    Variant.LEGACY: frozenset({RuleSet.LEGACY}),
    Variant.NFT: frozenset({RuleSet.IPTABLES_NFT}),
    Variant.PLAIN: frozenset({RuleSet.LEGACY, RuleSet.IPTABLES_NFT}),  # one of the two, and nobody knows which
}


def _occupied(families: Collection[Family], known: Collection[RuleSet]) -> dict[RuleSet, tuple[Family, ...]]:
    """Tell which sets but the known ones may hold rules of ours, and of which families."""
    found: dict[RuleSet, tuple[Family, ...]] = {}
    for family in families:
        in_nf_tables = chains(family)
        present = {
            RuleSet.LEGACY: RuleSet.LEGACY not in known and bool(legacy_tables(family)),
            RuleSet.IPTABLES_NFT: any(table in TABLES and name in OWN_CHAINS for table, name in in_nf_tables),
            RuleSet.NATIVE: any(table == NFT_TABLE for table, _ in in_nf_tables),
        }
        for rule_set, is_there in present.items():
            if is_there and rule_set not in known:
                found[rule_set] = (*found.get(rule_set, ()), family)
    return found


def find(
    families: Collection[Family], known: Collection[RuleSet], lock_wait: int, observe: Observer
) -> Iterator[tuple[Backend, tuple[Family, ...]]]:
    """Give the backends that read what may hold rules of ours, as `Backend.others` does.

    Args:
        families: those that are asked for.
        known: sets that the caller reads itself.
        lock_wait: seconds to wait for another program that holds a lock.
        observe: is told each command that is run.
    """
    for rule_set, where in _occupied(families, known).items():
        yield _open(rule_set, lock_wait, observe), where


def _open(rule_set: RuleSet, lock_wait: int, observe: Observer) -> Backend:
    if rule_set is RuleSet.NATIVE:
        from istio_init.rules.kernel.nft import NftBackend

        return NftBackend(lock_wait, observe)
    from istio_init.rules.kernel.restore import RestoreBackend

    variant = Variant.LEGACY if rule_set is RuleSet.LEGACY else Variant.NFT
    return RestoreBackend(variant, lock_wait, observe)
