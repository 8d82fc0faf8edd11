"""What nf_tables holds, read from and written to the kernel directly, so that rules made by any program can be seen.

iptables' own programs omit a table in which they do not understand a rule (`iptables-nft-save` prints a comment about it,
and exits with 0), or give up. The kernel lists every chain and every rule.
"""

from __future__ import annotations

import errno
import struct

from istio_init.core.errors import NotPermitted, Unsupported
from istio_init.core.light import TYPE_CHECKING, NamedTuple, contextmanager
from istio_init.rules.kernel.netlink import NETLINK_NETFILTER, Netlink, ReadError, attribute, parse
from istio_init.rules.kernel.remedies import remedy_for_refusal
from istio_init.rules.model import Family

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# linux/netfilter/nfnetlink.h and nf_tables.h: messages of nf_tables, which the batch of a transaction encloses.
NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = (NFNL_SUBSYS_NFTABLES << 8 | number for number in (1, 2))
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_DELCHAIN, NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = (
    NFNL_SUBSYS_NFTABLES << 8 | number for number in (3, 4, 5, 6, 7, 8)
)
NFTA_TABLE_NAME = 1
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS, NFTA_RULE_COMPAT = 1, 2, 3, 4, 5
NFTA_RULE_USERDATA = 7
NFTA_RULE_COMPAT_PROTO, NFTA_RULE_COMPAT_FLAGS = 1, 2
NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 1, 2
NFTA_META_DREG, NFTA_META_KEY, NFT_META_MARK, NFT_META_IIFNAME = 1, 2, 3, 6
NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA, NFTA_DATA_VALUE = 1, 2, 3, 1
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_REG_1 = 0, 1, 1
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800  # linux/netlink.h
NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}  # linux/netfilter.h
NFPROTO_INET = 1

BODY = struct.Struct("!BBH")  # nfgenmsg: family, version, resource
NUMBER, HANDLE = struct.Struct("!I"), struct.Struct("!Q")

# Answers of a kernel without nfnetlink, nf_tables or this family: there is nothing that could be read.
ABSENT = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)

Message = tuple[int, int, bytes]  # type, flags, and body


class NativeRule(NamedTuple):
    """One rule of nf_tables as the kernel lists it.

    Attributes:
        table: the name of its table, such as `nat`.
        chain: the name of its chain.
        handle: its number, which no other rule of the table ever has.
        expressions: the attribute NFTA_RULE_EXPRESSIONS, which the kernel takes back as it is.
        userdata: what the program that made it stored with it.
    """

    table: str
    chain: str
    handle: int
    expressions: bytes
    userdata: bytes

    def narrowed(self, key: int, operation: int, value: bytes) -> NativeRule:
        """Return the same rule for fewer packets.

        Args:
            key: what is looked at, NFT_META_*.
            operation: how it is compared, NFT_CMP_*.
            value: with what, as the kernel has it.
        """
        register = NUMBER.pack(NFT_REG_1)
        found = attribute(NFTA_META_KEY, NUMBER.pack(key)) + attribute(NFTA_META_DREG, register)
        wanted = attribute(NFTA_CMP_SREG, register) + attribute(NFTA_CMP_OP, NUMBER.pack(operation))
        wanted += attribute(NFTA_CMP_DATA, attribute(NFTA_DATA_VALUE, value))
        return self._replace(expressions=_expression("meta", found) + _expression("cmp", wanted) + self.expressions)


def chains(family: Family) -> frozenset[tuple[str, str]]:
    """List the chains of one family in nf_tables, whichever program created them, as `(table, chain)`.

    Raises:
        NotPermitted: this process may not ask.
        Unsupported: the kernel's answer could not be read.
    """
    listed = dump(NFT_MSG_GETCHAIN, NFPROTO[family], f"chains of nf_tables for {family}")
    return frozenset(names_of(body, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME) for body in listed)


def rules(family: Family) -> list[NativeRule]:
    """List the rules of one family in nf_tables, those of each chain in order.

    Raises:
        NotPermitted, Unsupported: as for `chains`.
    """
    return [rule_of(body) for body in dump(NFT_MSG_GETRULE, NFPROTO[family], f"rules of nf_tables for {family}")]


def inet_tables() -> frozenset[str]:
    """List the tables of the family inet.

    Raises:
        NotPermitted, Unsupported: as for `chains`.
    """
    listed = dump(NFT_MSG_GETTABLE, NFPROTO_INET, "tables of nf_tables")
    return frozenset(names_of(body, NFTA_TABLE_NAME, NFTA_TABLE_NAME)[0] for body in listed)


def delete_inet_table(name: str) -> Message:
    """Return the message that deletes a table of the family inet with all that is in it."""
    return NFT_MSG_DELTABLE, 0, BODY.pack(NFPROTO_INET, 0, 0) + attribute(NFTA_TABLE_NAME, text(name))


def change(messages: Sequence[Message]) -> None:
    """Make changes in one transaction.

    Raises:
        NotPermitted, Unsupported: nothing was changed, or, where the kernel's answer was lost, nobody knows.
    """
    boundary = BODY.pack(0, 0, NFNL_SUBSYS_NFTABLES)
    with _explained("the rules of nf_tables cannot be changed"), Netlink(NETLINK_NETFILTER) as kernel:
        kernel.transact(((NFNL_MSG_BATCH_BEGIN, 0, boundary), *messages, (NFNL_MSG_BATCH_END, 0, boundary)))


def create_chain(family: Family, table: str, chain: str) -> Message:
    """Return the message that ensures that a chain exists."""
    body = attribute(NFTA_CHAIN_TABLE, text(table)) + attribute(NFTA_CHAIN_NAME, text(chain))
    return NFT_MSG_NEWCHAIN, NLM_F_CREATE, _body(family, body)


def delete_chain(family: Family, table: str, chain: str) -> Message:
    """Return the message that deletes an empty chain."""
    body = attribute(NFTA_CHAIN_TABLE, text(table)) + attribute(NFTA_CHAIN_NAME, text(chain))
    return NFT_MSG_DELCHAIN, 0, _body(family, body)


def delete_rules(family: Family, table: str, chain: str, handle: int | None = None) -> Message:
    """Return the message that deletes one rule of a chain, or without a handle all of them."""
    body = attribute(NFTA_RULE_TABLE, text(table)) + attribute(NFTA_RULE_CHAIN, text(chain))
    if handle is not None:
        body += attribute(NFTA_RULE_HANDLE, HANDLE.pack(handle))
    return NFT_MSG_DELRULE, 0, _body(family, body)


def add_rule(family: Family, rule: NativeRule, protocol: int = 0, *, at_head: bool = False) -> Message:
    """Return the message that adds a rule that was listed before to its chain.

    Args:
        family: whose table it is.
        rule: the rule; its handle does not count.
        protocol: the IP protocol that it asks for, which extensions of iptables check (nft_parse_compat in
            net/netfilter/nft_compat.c); the kernel does not list it.
        at_head: whether to put it at the head of the chain, instead of its end.
    """
    body = attribute(NFTA_RULE_TABLE, text(rule.table)) + attribute(NFTA_RULE_CHAIN, text(rule.chain))
    body += attribute(NFTA_RULE_EXPRESSIONS, rule.expressions)
    if protocol:
        compat = attribute(NFTA_RULE_COMPAT_PROTO, NUMBER.pack(protocol)) + attribute(NFTA_RULE_COMPAT_FLAGS, NUMBER.pack(0))
        body += attribute(NFTA_RULE_COMPAT, compat)
    if rule.userdata:
        body += attribute(NFTA_RULE_USERDATA, rule.userdata)
    return NFT_MSG_NEWRULE, NLM_F_CREATE if at_head else NLM_F_CREATE | NLM_F_APPEND, _body(family, body)


def dump(kind: int, family: int, what: str, attributes: bytes = b"") -> list[bytes]:
    """List objects of a kind; none if the kernel does not have any.

    Args:
        kind: type of the request's message.
        family: NFPROTO_*.
        what: what is asked for, for error messages.
        attributes: of the request.

    Raises:
        NotPermitted, Unsupported: as for `chains`.
    """
    with _explained(f"the {what} cannot be read"):
        try:
            with Netlink(NETLINK_NETFILTER) as kernel:
                return kernel.dump(kind, BODY.pack(family, 0, 0) + attributes)
        except ReadError:
            raise
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return []


@contextmanager
def _explained(problem: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not isinstance(error, ReadError) and error.errno in (errno.EPERM, errno.EACCES):
            raise NotPermitted(f"{problem}: {error.strerror}; {remedy_for_refusal()}") from error
        raise Unsupported(f"{problem}: {error.strerror}") from error


def _expression(name: str, data: bytes) -> bytes:
    return attribute(NFTA_LIST_ELEM, attribute(NFTA_EXPR_NAME, text(name)) + attribute(NFTA_EXPR_DATA, data))


def rule_of(body: bytes) -> NativeRule:
    """Parse the message of a rule."""
    table, chain = names_of(body, NFTA_RULE_TABLE, NFTA_RULE_CHAIN)
    _, attributes = parse(body, BODY)
    handle = attributes.get(NFTA_RULE_HANDLE, b"")
    if len(handle) != HANDLE.size:
        raise Unsupported(f"a rule of nf_tables in table {table}, chain {chain}, has no handle")
    expressions, userdata = (attributes.get(kind, b"") for kind in (NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA))
    return NativeRule(table, chain, HANDLE.unpack(handle)[0], expressions, userdata)


def names_of(body: bytes, *kinds: int) -> tuple[str, str]:
    """Return two attributes of a message that are names."""
    _, attributes = parse(body, BODY)
    table, name = (attributes.get(kind, b"").rstrip(b"\0").decode(errors="replace") for kind in kinds)
    return table, name


def _body(family: Family, attributes: bytes) -> bytes:
    return BODY.pack(NFPROTO[family], 0, 0) + attributes


def text(name: str) -> bytes:
    """Return a name as the kernel wants it."""
    return name.encode() + b"\0"
