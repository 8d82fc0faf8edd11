"""The only part that changes a kernel: `restore`, `libiptc`, and `fake` for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import InvalidInput
from istio_init.model import Variant

if TYPE_CHECKING:
    from istio_init.backends.base import Backend
    from istio_init.runner import Observer


def open_backend(name: str, variant: Variant | None, lock_wait: int, observe: Observer) -> Backend:
    """Make a backend by the names that the command line uses.

    Args:
        name: `restore` or `libiptc`; `auto` is `restore`, which was measured to be faster on every variant.
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
        from istio_init.backends.libiptc import LibiptcBackend  # noqa: PLC0415 - python-iptables is dear to import

        return LibiptcBackend(lock_wait)
    from istio_init.backends.restore import RestoreBackend  # noqa: PLC0415 - the other backend does without

    return RestoreBackend(variant, lock_wait, observe)
