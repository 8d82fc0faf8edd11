"""The result of applying or removing rules."""

from __future__ import annotations

from istio_init.core.light import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.rules.model import Family, Variant


class RoutesChanged(NamedTuple):
    """Whether policy routes, and addresses of lo, were changed."""

    routed: bool = False
    addressed: bool = False


class Report(NamedTuple):
    """What an `apply` or `remove` did.

    Attributes:
        backend: the name of the backend.
        variants: the iptables variant that each family was read and written through.
        chains: number of chains written or removed; 0 if nothing had to change.
        rules: number of rules written.
        changed: whether anything was changed, including policy routes and addresses.
        routed: whether a policy route was added or removed.
        addressed: whether an address of lo was added or removed.
        warnings: what was left out or done differently, and why.
        left_out: the families of the plan that are not in place, because they do not work here.
    """

    backend: str
    variants: dict[Family, Variant]
    chains: int
    rules: int
    changed: bool
    routed: bool
    addressed: bool
    warnings: tuple[str, ...]
    left_out: frozenset[Family] = frozenset()

    @property
    def means(self) -> str:
        """Summary of backend and variants, such as `restore; ipv4 nft, ipv6 nft`."""
        return means(self.backend, self.variants)


def means(backend: str, variants: Mapping[Family, Variant]) -> str:
    """Return a summary of a backend and its variants, such as `restore; ipv4 nft, ipv6 nft`."""
    return "; ".join(filter(None, (backend, ", ".join(f"{f} {v}" for f, v in variants.items()))))
