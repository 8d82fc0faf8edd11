"""All knowledge of a kind of match or target in one place: text, nft, its listing, walk, kernel module. Pure.

A new kind is a member of `MatchKind` or `TargetKind`, a subclass of `MatchType` or `TargetType` in a module of this package,
and an example in `tests/unit/test_matches.py`. A new module is registered here.
"""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING
from istio_init.rules.matches import addresses, comment, conntrack, owners, ports, targets

if TYPE_CHECKING:
    from istio_init.rules.matches.kinds import MatchType, TargetType
    from istio_init.rules.model import MatchKind, TargetKind

# In the order of `MatchKind`, which is that of iptables-save.
MATCH_MODULES = (addresses, ports, owners, conntrack, comment)
TARGET_MODULES = (targets, conntrack)

MATCHES: dict[MatchKind, MatchType] = {one.kind: one for module in MATCH_MODULES for one in module.MATCHES}
TARGETS: dict[TargetKind, TargetType] = {one.kind: one for module in TARGET_MODULES for one in module.TARGETS}


def xtables_modules() -> dict[str, str]:
    """Return extension → kernel module, for extensions whose module is not `xt_NAME`."""
    pairs = (*(one.modules for one in MATCHES.values()), *(one.modules for one in TARGETS.values()))
    return dict(pair for several in pairs for pair in several)


def nft_modules() -> dict[str, str]:
    """Return nft keyword → kernel module, for statements that need a module besides nf_tables."""
    pairs = (*(one.nft_modules for one in TARGETS.values()), *(one.nft_modules for one in MATCHES.values()))
    return dict(pair for several in pairs for pair in several)
