"""The backends by the names that users know them by. A new one is a module and a row here."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.kernel.locks import LOCK_WAIT
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.backend import Backend

    Make = Callable[[Variant | None, int, Observer], Backend]

AUTO = "auto"
RESTORE, LIBIPTC, NFT = "restore", "libiptc", "nft"
# What `auto` means: iptables-restore was measured to be faster than libiptc on every variant.
PREFERRED, FALLBACK = RESTORE, NFT


class Row(NamedTuple):
    """One backend.

    Attributes:
        make: imports and makes it; nothing is imported before it is wanted.
        summary: what it is, for help texts.
        variants: the variants of iptables whose rules it reaches.
        reach: the same in words, for error messages.
        dry_run_format: the format of a dry run that shows what it would write.
    """

    make: Make
    summary: str
    variants: tuple[Variant, ...]
    reach: str
    dry_run_format: str = RESTORE


def _restore(variant: Variant | None, lock_wait: int, observe: Observer) -> Backend:
    from istio_init.rules.kernel.restore import RestoreBackend

    return RestoreBackend(variant, lock_wait, observe)


def _libiptc(_variant: Variant | None, lock_wait: int, _observe: Observer) -> Backend:
    from istio_init.rules.kernel.libiptc import LibiptcBackend

    return LibiptcBackend(lock_wait)


def _nft(_variant: Variant | None, lock_wait: int, observe: Observer) -> Backend:
    from istio_init.rules.kernel.nft import NftBackend

    return NftBackend(lock_wait, observe)


BACKENDS = {
    RESTORE: Row(_restore, "iptables-restore", tuple(Variant), "the tables of iptables"),
    LIBIPTC: Row(_libiptc, "legacy tables by library calls", (Variant.LEGACY,), "the legacy tables only"),
    NFT: Row(_nft, "tables of nftables' own", (Variant.NFT,), "nf_tables only", dry_run_format=NFT),
}
NAMES = (AUTO, *BACKENDS)


def find(name: str) -> Row:
    """Return the row of a backend; that of `auto` is the preferred one's.

    Raises:
        InvalidInput: there is no such backend.
    """
    row = BACKENDS.get(PREFERRED if name == AUTO else name)
    if row is None:
        raise InvalidInput("--backend", f"{name!r} is not a backend", ", ".join(NAMES))
    return row


def agree(named: str, wanted: str) -> bool:
    """Return whether a backend that was named leaves room for another one: `auto` does for any."""
    return named in (AUTO, wanted)


def open_backend(
    name: str, variant: Variant | None = None, lock_wait: int = LOCK_WAIT, observe: Observer = lambda _: None
) -> Backend:
    """Make a backend; see `istio_init.rules.kernel.engine.open_engine`, which also knows `auto`.

    Raises:
        InvalidInput: there is no such backend, or it does not reach the variant.
    """
    row = find(name)
    if variant is not None and variant not in row.variants:
        others = [f"{other} with {variant}" for other, its in BACKENDS.items() if variant in its.variants and other != name]
        problem = f"{name!r} reaches {row.reach}, and --iptables-variant is {variant.value!r}"
        raise InvalidInput("--backend", problem, f"{others[0]}, or {name} without --iptables-variant")
    return row.make(variant, lock_wait, observe)


def open_rule_set(rule_set: RuleSet, lock_wait: int, observe: Observer) -> Backend:
    """Make the backend that reads one of the kernel's sets of rules."""
    if rule_set is RuleSet.NATIVE:
        return _nft(None, lock_wait, observe)
    return _restore(Variant.LEGACY if rule_set is RuleSet.LEGACY else Variant.NFT, lock_wait, observe)
