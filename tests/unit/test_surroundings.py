"""Kernels that a test cannot ask for: without IPv6, without policy routing, too old for protocol numbers of addresses."""

from __future__ import annotations

import errno
import os
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any, Self

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from istio_init.core.errors import Unsupported
from istio_init.rules.kernel import rtnetlink, surroundings
from istio_init.rules.kernel.netlink import MESSAGE, NETLINK_ROUTE
from istio_init.rules.model import Family, TproxyRoute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class OldKernel:
    """Answers as netlink does, in messages that pyroute2 writes, from what it is told that there is.

    Args:
        families: those that it has policy rules for.
        addresses: of lo: each with its prefix length and its protocol number, None where the kernel keeps none.
    """

    def __init__(
        self, families: tuple[int, ...] = (AF_INET,), addresses: tuple[tuple[str, int, int | None], ...] = ()
    ) -> None:
        self.families = families
        self.addresses = addresses

    def __call__(self, protocol: int) -> Self:
        assert protocol == NETLINK_ROUTE
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Answer with what there is, and for routes and addresses with IPv4's or IPv6's, whatever was asked for.

        That is what rtnetlink does for a family that it does not know.
        """
        answers: dict[int, Callable[[int], Iterator[bytes]]] = {
            rtnetlink.RTM_GETRULE: self.rules,
            rtnetlink.RTM_GETROUTE: lambda _: self.routes(),
            rtnetlink.RTM_GETADDR: lambda _: self.lo(),
        }
        return list(answers[kind](body[0]))

    def rules(self, family: int) -> Iterator[bytes]:
        if family not in self.families:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        values = {"TABLE": 133, "FWMARK": 1337, "FWMASK": 0xFFFFFFFF, "PROTOCOL": 133, "SUPPRESS_PREFIXLEN": 0xFFFFFFFF}
        attributes = [(f"FRA_{name}", value) for name, value in values.items()]
        yield content(fibmsg(), family=family, action=rtnetlink.FR_ACT_TO_TBL, table=133, attrs=attributes)

    def routes(self) -> Iterator[bytes]:
        yield content(rtmsg(), family=AF_INET, type=rtnetlink.RTN_LOCAL, proto=133, attrs=[("RTA_TABLE", 133)])

    def lo(self) -> Iterator[bytes]:
        for address, prefix, number in self.addresses:
            attributes = [("IFA_ADDRESS", address)] + [("IFA_PROTO", number)] * (number is not None)
            yield content(ifaddrmsg(), family=AF_INET6, prefixlen=prefix, index=surroundings.LOOPBACK, attrs=attributes)
        yield content(ifaddrmsg(), family=AF_INET, prefixlen=8, index=1, attrs=[("IFA_ADDRESS", "127.0.0.1")])

    def request(self, *_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def content(message: Any, **fields: Any) -> bytes:
    """Write what follows the header of one of pyroute2's messages."""
    for name, value in fields.items():
        message[name] = value
    message.encode()
    return bytes(message.data[MESSAGE.size :])


def use(kernel: OldKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "Netlink", kernel)


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
