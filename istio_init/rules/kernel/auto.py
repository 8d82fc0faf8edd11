"""The backend that nobody named: iptables where one of its variants works, else native nftables.

iptables comes first, for whoever looks for our rules looks there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.core.errors import CommandError, IstioInitError
from istio_init.core.runner import NOT_FOUND
from istio_init.rules.kernel.backend import BOTH_FAMILIES
from istio_init.rules.kernel.locks import LOCK_WAIT
from istio_init.rules.kernel.restore import RestoreBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from istio_init.core.runner import Observer
    from istio_init.rules.kernel.nft import NftBackend
    from istio_init.rules.kernel.report import Report
    from istio_init.rules.model import Family, Plan


class AutoBackend(RestoreBackend):
    """Writes through iptables-restore, or through nft where iptables is missing or no variant of it takes the plan.

    Args:
        lock_wait: seconds to wait for another program that holds a lock.
        observe: is told each command that is run.
    """

    def __init__(self, lock_wait: int = LOCK_WAIT, observe: Observer = lambda _: None) -> None:
        super().__init__(None, lock_wait, observe)

    def apply(self, plan: Plan, families: tuple[Family, ...] = BOTH_FAMILIES) -> Report:
        """Bring the kernel to `plan`, as `Backend.apply` does."""
        return self._or_else(
            lambda: super(AutoBackend, self).apply(plan, families),
            lambda: self._nft().apply(plan, families),
        )

    def remove(self, families: tuple[Family, ...] = BOTH_FAMILIES) -> Report:
        """Remove all that is ours, as `Backend.remove` does."""
        return self._or_else(lambda: super(AutoBackend, self).remove(families), lambda: self._nft().remove(families))

    def _or_else(self, first: Callable[[], Report], second: Callable[[], Report]) -> Report:
        try:
            return first()
        except CommandError as error:
            if not self._is_useless():
                raise
            self._observe(f"iptables cannot be used here: {error}")
            try:
                return second()
            except IstioInitError as other:
                error.add_note(f"without iptables, too: {other}")
                raise error from None

    def _nft(self) -> NftBackend:
        from istio_init.rules.kernel.nft import NftBackend

        return NftBackend(self.lock_wait, self._observe)

    def _is_useless(self) -> bool:
        """Tell whether no variant of iptables could be used, and none that there is may hide rules of ours."""
        unseen = self._unreadable.values()
        are_missing = all(isinstance(error, CommandError) and error.stderr == NOT_FOUND for error in unseen)
        return not self._chosen and are_missing
