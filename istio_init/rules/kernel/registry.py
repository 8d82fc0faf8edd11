"""The backends by name, as on the command line. A new backend is a module and a row here."""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.kernel.locks import USUAL_WAITS, Waits
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.model import Variant

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.backend import Backend

    Make = Callable[[Variant | None, Waits, Observer], Backend]

AUTO = "auto"
RESTORE, LIBIPTC, NFT = "restore", "libiptc", "nft"
# What `auto` means. iptables-restore is preferred because it was measured to be faster than libiptc on every variant.
PREFERRED, FALLBACK = RESTORE, NFT


class Row(NamedTuple):
    """One backend.

    Attributes:
        make: imports and creates it; a backend is imported only when it is used.
        summary: short description, for help texts.
        variants: the iptables variants whose rules it can read and write.
        reach: the same as text, for error messages.
        dry_run_format: the output format that shows what it would write.
    """

    make: Make
    summary: str
    variants: tuple[Variant, ...]
    reach: str
    dry_run_format: str = RESTORE


def _restore(variant: Variant | None, waits: Waits, observe: Observer) -> Backend:
    from istio_init.rules.kernel.restore import RestoreBackend

    return RestoreBackend(variant, waits, observe)


def _libiptc(_variant: Variant | None, waits: Waits, _observe: Observer) -> Backend:
    from istio_init.rules.kernel.libiptc import LibiptcBackend

    return LibiptcBackend(waits)


def _nft(_variant: Variant | None, waits: Waits, observe: Observer) -> Backend:
    from istio_init.rules.kernel.nft import NftBackend

    return NftBackend(waits, observe)


BACKENDS = {
    RESTORE: Row(_restore, "iptables-restore", tuple(Variant), "the tables of iptables"),
    LIBIPTC: Row(_libiptc, "legacy tables through libiptc", (Variant.LEGACY,), "legacy tables only"),
    NFT: Row(_nft, "native nftables", (Variant.NFT,), "nf_tables only", dry_run_format=NFT),
}
NAMES = (AUTO, *BACKENDS)


def find(name: str) -> Row:
    """Return the row of a backend; for `auto`, that of the preferred one.

    Raises:
        InvalidInput: there is no such backend.
    """
    row = BACKENDS.get(PREFERRED if name == AUTO else name)
    if row is None:
        raise InvalidInput("--backend", f"{name!r} is not a backend", ", ".join(NAMES))
    return row


def agree(named: str, wanted: str) -> bool:
    """Return whether the backend that the user named permits `wanted`; `auto` permits any."""
    return named in (AUTO, wanted)


def open_backend(
    name: str, variant: Variant | None = None, waits: Waits = USUAL_WAITS, observe: Observer = lambda _: None
) -> Backend:
    """Create a backend; `auto` creates the preferred one, and only `istio_init.rules.kernel.engine.open_engine` falls back.

    Args:
        name: one of NAMES.
        variant: the iptables variant to use; None lets the backend detect it.
        waits: how long to wait for locks and for tools.
        observe: receives each command that is run.

    Raises:
        InvalidInput: there is no such backend, or it does not support the variant.
    """
    row = find(name)
    if variant is not None and variant not in row.variants:
        others = [f"{other} with {variant}" for other, its in BACKENDS.items() if variant in its.variants and other != name]
        problem = f"{name!r} supports {row.reach}, but --iptables-variant is {variant.value!r}"
        raise InvalidInput("--backend", problem, f"{others[0]}, or {name} without --iptables-variant")
    return row.make(variant, waits, observe)


def open_rule_set(rule_set: RuleSet, waits: Waits, observe: Observer) -> Backend:
    """Create the backend that reads and writes one of the kernel's rule sets."""
    if rule_set is RuleSet.NATIVE:
        return _nft(None, waits, observe)
    if rule_set is RuleSet.LEGACY:
        from istio_init.rules.kernel.restore import RestoreBackend

        return RestoreBackend(None, waits, observe, (RuleSet.LEGACY,))
    if rule_set is RuleSet.ISTIO_NATIVE:
        from istio_init.rules.kernel.istio_tables import IstioTables

        return IstioTables(waits)
    from istio_init.rules.kernel.native import NativeBackend

    return NativeBackend(waits)
