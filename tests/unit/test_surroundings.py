"""Kernels that a test cannot ask for: without IPv6, without policy routing, too old for protocol numbers of addresses."""

from __future__ import annotations

import errno
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Self

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from istio_init.core.errors import Unsupported
from istio_init.rules.kernel import surroundings
from istio_init.rules.model import Family, TproxyRoute

if TYPE_CHECKING:
    from collections.abc import Iterator


class OldKernel:
    """Answers as netlink does, from what it is told that there is.

    Args:
        families: those that it has policy rules for.
        addresses: of lo: each with its prefix length and its protocol number, None where the kernel keeps none.
    """

    def __init__(
        self, families: tuple[int, ...] = (AF_INET,), addresses: tuple[tuple[str, int, int | None], ...] = ()
    ) -> None:
        self.families = families
        self.addresses = addresses

    def __call__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_rules(self, family: int) -> Iterator[fibmsg]:
        if family not in self.families:
            raise NetlinkError(errno.EAFNOSUPPORT)
        rule = fibmsg()
        rule["family"], rule["action"], rule["table"] = family, surroundings.FR_ACT_TO_TBL, 133
        for field in ("flags", "src_len", "dst_len", "tos"):
            rule[field] = 0
        values = {"TABLE": 133, "FWMARK": 1337, "FWMASK": 0xFFFFFFFF, "PROTOCOL": 133, "SUPPRESS_PREFIXLEN": 0xFFFFFFFF}
        rule["attrs"] = [(f"FRA_{name}", value) for name, value in values.items()]
        yield rule

    def get_routes(self, family: int, **_: int) -> Iterator[rtmsg]:  # noqa: ARG002 - that is the point
        """Give IPv4's routes, whatever was asked for: what rtnetlink does for a family that it does not know."""
        route = rtmsg()
        route["family"], route["type"], route["dst_len"], route["proto"] = AF_INET, surroundings.RTN_LOCAL, 0, 133
        route["attrs"] = [("RTA_TABLE", 133)]
        yield route

    def get_addr(self, **_: int) -> Iterator[ifaddrmsg]:
        for address, prefix, number in self.addresses:
            message = ifaddrmsg()
            message["family"], message["prefixlen"] = AF_INET6, prefix
            message["attrs"] = [("IFA_ADDRESS", address)] + [("IFA_PROTO", number)] * (number is not None)
            yield message

    def rule(self, *_: Any, **__: Any) -> None:
        raise NetlinkError(errno.EOPNOTSUPP)


def use(kernel: OldKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "IPRoute", kernel)


def test_a_kernel_without_ipv6_has_no_policy_routes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use(OldKernel(families=(AF_INET,)), monkeypatch)
    assert surroundings.find(frozenset()) == (TproxyRoute(1337, 133, Family.IPV4),)


def test_a_kernel_without_policy_routing_refuses_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    use(OldKernel(families=()), monkeypatch)
    with pytest.raises(
        Unsupported, match=r"cannot be changed: .*; it needs policy routing in the kernel \(CONFIG_IP_MULTIPLE"
    ):
        surroundings.add(TproxyRoute(1337, 133, Family.IPV4))


@pytest.mark.parametrize(
    ("present", "ours"),
    [
        ((("::1", 128, 1), ("::6", 128, 133), ("::7", 128, None)), ("::6/128",)),
        ((("::1", 128, 1), ("::6", 128, None)), ()),
        ((("::1", 128, None), ("::6", 128, None), ("::7", 128, None)), ("::6/128",)),
        ((("::1", 128, None), ("::6", 64, None)), ()),
        ((), ()),
    ],
    ids=["with-numbers", "others", "without-numbers", "without-numbers-others", "none"],
)
def test_where_addresses_have_no_numbers_the_address_itself_tells_that_it_is_ours(
    present: tuple[tuple[str, int, int | None], ...], ours: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(OldKernel(addresses=present), monkeypatch)
    assert surroundings.addresses() == ours
