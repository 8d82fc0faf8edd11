"""What a backend tells of a change that it made."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.rules.model import Family, Variant


class RoutesChanged(NamedTuple):
    """What was changed besides rules: policy routes, and addresses of lo."""

    routed: bool = False
    addressed: bool = False


class Report(NamedTuple):
    """What an `apply` or `remove` did.

    Attributes:
        backend: the name of the backend.
        variants: the iptables variant that each family was read and written through.
        chains: how many chains were written or removed; 0 when all was as it should be.
        rules: how many rules were written.
        changed: whether anything was written, policy routes and addresses included.
        routed: whether a policy route was made or removed.
        addressed: whether lo was given an address, or one was taken from it.
        warnings: what was left out, and why.
    """

    backend: str
    variants: dict[Family, Variant]
    chains: int
    rules: int
    changed: bool
    routed: bool
    addressed: bool
    warnings: tuple[str, ...]

    @property
    def means(self) -> str:
        """Backend and variants in a few words, such as `restore; ipv4 nft, ipv6 nft`."""
        return means(self.backend, self.variants)


def means(backend: str, variants: Mapping[Family, Variant]) -> str:
    """Name a backend and its variants in a few words, such as `restore; ipv4 nft, ipv6 nft`."""
    return "; ".join(filter(None, (backend, ", ".join(f"{f} {v}" for f, v in variants.items()))))
