"""The only part that changes a kernel: `restore`, `libiptc`, `nft`, and `fake` for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.core.errors import InvalidInput
from istio_init.rules.model import Variant

if TYPE_CHECKING:
    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.backend import Backend


def open_backend(name: str, variant: Variant | None, lock_wait: int, observe: Observer) -> Backend:
    """Make a backend by the names that the command line uses.

    Args:
        name: `restore`, `libiptc` or `nft`; `auto` is `restore`, which was measured to be faster than `libiptc` on every
            variant, and `nft` where no variant of iptables can be used.
        variant: which iptables is meant; None finds out.
        lock_wait: seconds to wait for another program that holds a lock.
        observe: is told what is done.

    Raises:
        InvalidInput: the two contradict each other.
    """
    if name == "libiptc":
        if variant is Variant.NFT:
            problem = "'libiptc' reaches the legacy tables only, and --iptables-variant is 'nft'"
            raise InvalidInput("--backend", problem, "restore with nft, or libiptc with legacy")
        from istio_init.rules.kernel.libiptc import LibiptcBackend

        return LibiptcBackend(lock_wait)
    if name == "nft":
        if variant is Variant.LEGACY:
            problem = "'nft' reaches nf_tables only, and --iptables-variant is 'legacy'"
            raise InvalidInput("--backend", problem, "restore with legacy, or nft alone")
        from istio_init.rules.kernel.nft import NftBackend

        return NftBackend(lock_wait, observe)
    if name == "auto" and variant is None:
        from istio_init.rules.kernel.auto import AutoBackend

        return AutoBackend(lock_wait, observe)
    from istio_init.rules.kernel.restore import RestoreBackend

    return RestoreBackend(variant, lock_wait, observe)
