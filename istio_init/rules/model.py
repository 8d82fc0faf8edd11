"""The nouns: what a plan is made of, and what a kernel is read into.

Everything here is frozen and compares by value. Each pod start waits for this import, so the classes are
`typing.NamedTuple`, not dataclasses (0.13 ms against 0.6 ms each), and annotations are evaluated as they stand: as strings
(`from __future__ import annotations`) they would be compiled one by one, which takes longer than all the rest.
"""

from istio_init.core.light import NamedTuple, StrEnum

# Ports, ids and names that pods and control planes agree on (Istio 1.0.5, `tools/deb/istio-iptables.sh`).
ENVOY_PORT = 15001
INBOUND_PORT = 15006  # of today's meshes; Istio 1.0 has both directions on ENVOY_PORT
HEALTH_PORT = 15020  # the agent's: health, and metrics of app and proxy in one
READINESS_PORT = 15021
DNS_PORT = 15053
PROXY_UID = 1337
TPROXY_MARK = 1337
TPROXY_ROUTE_TABLE = 133
NO_MARK = 0  # what a packet has that nobody marked
SSH_PORT = 22
TUNNEL_PORT = 15008  # HBONE, of today's meshes
RESOLVER_PORT = 53
LOOP_MARK = 1338  # what the proxy sends to its own pod with TPROXY, and what must be captured all the same (Istio)
LOOPBACK_CIDR = "127.0.0.1/32"
LOOPBACK_CIDR_IPV6 = "::1/128"
PROXY_SOURCE = "127.0.0.6/32"  # the source from which today's proxy talks to its app
PROXY_SOURCE_IPV6 = "::6/128"
ANY_IPV4 = "0.0.0.0/0"
ANY_IPV6 = "::/0"
OWNER_COMMENT = "istio-init"  # marks our rules in chains that are not ours
UINT32_MAX = 4294967295


class Family(StrEnum):
    """An address family: each has tables of its own in the kernel."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


class Table(StrEnum):
    """A table of iptables(8)."""

    RAW = "raw"
    MANGLE = "mangle"
    NAT = "nat"
    FILTER = "filter"


class Mode(StrEnum):
    """How an inbound connection reaches the proxy."""

    REDIRECT = "REDIRECT"
    TPROXY = "TPROXY"


class Variant(StrEnum):
    """Which kernel interface an iptables binary speaks; `PLAIN` is the unadorned name, whatever it links to."""

    LEGACY = "legacy"
    NFT = "nft"
    PLAIN = "plain"


class MatchKind(StrEnum):
    """What a match looks at. The order is the one in which iptables-save prints them."""

    SOURCE = "source"
    DESTINATION = "destination"
    IN_INTERFACE = "in-interface"
    OUT_INTERFACE = "out-interface"
    PROTOCOL = "protocol"
    SOURCE_PORT = "source-port"
    DESTINATION_PORT = "destination-port"
    DESTINATION_PORTS = "destination-ports"
    UID_OWNER = "uid-owner"
    GID_OWNER = "gid-owner"
    SOCKET = "socket"
    CTSTATE = "ctstate"
    CTDIR = "ctdir"
    MARK = "mark"
    CONNMARK = "connmark"
    COMMENT = "comment"


class Match(NamedTuple):
    """One condition of a rule.

    Attributes:
        kind: what is looked at.
        value: a canonical CIDR, interface, protocol, comma-separated conntrack states or ports, a direction, a comment or a
            `first:last` port range as text; an id or a mark as a number; empty for `SOCKET`, which has no value.
        negated: whether the condition is that it does *not* match.
    """

    kind: MatchKind
    value: int | str = ""
    negated: bool = False


class TargetKind(StrEnum):
    """What happens to a packet that a rule matches, in the words of iptables-extensions(8)."""

    JUMP = "JUMP"
    RETURN = "RETURN"
    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    REDIRECT = "REDIRECT"
    TPROXY = "TPROXY"
    MARK = "MARK"
    DROP = "DROP"
    SAVE_MARK = "SAVE_MARK"
    RESTORE_MARK = "RESTORE_MARK"
    ZONE = "ZONE"


class Target(NamedTuple):
    """What a rule does.

    Attributes:
        kind: the verdict or target extension.
        chain: where a `JUMP` goes.
        port: the port of a `REDIRECT` or `TPROXY`.
        mark: the packet mark that `TPROXY` or `MARK` sets, all 32 bits of it.
        zone: the conntrack zone of a `ZONE` (CT --zone).
        reject_with: the ICMP message of a `REJECT`; its name tells the family, so a script for one is refused by the other.
    """

    kind: TargetKind
    chain: str = ""
    port: int | None = None
    mark: int | None = None
    reject_with: str = ""
    zone: int | None = None


class Reason(NamedTuple):
    """Why a rule is there: programs go by the id, people read the sentence, which is `str(reason)`.

    Layouts have one table of them without values; `of` gives the reason of one rule.

    Attributes:
        id: stable, and unique among the reasons of all layouts.
        template: the sentence, with `{value}` where it tells a value.
        value: that value as text, such as a CIDR.
        plural: the sentence about several values at once, where rules are joined into one. The noun that counts them stands
            in braces: `{ports} are excluded` becomes "ports 1, 3 are excluded", or "2,000 ports are excluded".
    """

    id: str = ""
    template: str = ""
    value: str = ""
    plural: str = ""

    def of(self, value: int | str) -> "Reason":
        """Return this reason for one value."""
        return Reason(self.id, self.template, str(value), self.plural)

    def __str__(self) -> str:
        """Write the sentence."""
        return self.template.replace("{value}", self.value)


NO_REASON = Reason()


class Rule(NamedTuple):
    """One rule of a chain, and the reason that it is there (`NO_REASON` for a rule read from a kernel)."""

    matches: tuple[Match, ...]
    target: Target
    reason: Reason = NO_REASON

    @property
    def why(self) -> str:
        """The reason as a sentence."""
        return str(self.reason)

    def does_the_same_as(self, other: "KernelRule") -> bool:
        """Compare effects: reasons do not count, nor the order of conditions that all have to hold."""
        if not isinstance(other, Rule) or self.target != other.target:
            return False
        return self.matches == other.matches or frozenset(self.matches) == frozenset(other.matches)


class OpaqueRule(NamedTuple):
    """A rule found in a kernel that this model cannot express; kept so that it can be put back.

    Attributes:
        text: the rule as iptables-save prints it, without `-A CHAIN`.
        native: the backend's own object for it, where text does not do.
    """

    text: str
    native: object = None

    def does_the_same_as(self, other: "KernelRule") -> bool:
        """Two unknown rules are the same when they are written the same."""
        return isinstance(other, OpaqueRule) and self.text == other.text


KernelRule = Rule | OpaqueRule


class Chain(NamedTuple):
    """Rules for one chain of one table, in order.

    Attributes:
        rules: the whole content of a chain of ours, and for a built-in chain what is appended to it.
        inserted: what is put at the head of a built-in chain, in the order in which it stands there.
    """

    family: Family
    table: Table
    name: str
    rules: tuple[Rule, ...]
    inserted: tuple[Rule, ...] = ()


class TproxyRoute(NamedTuple):
    """The policy routing that hands marked packets to this host: rule `fwmark mark → table`, route `local default dev lo`.

    With `NO_MARK` it is a route of ours that no rule of ours leads to.

    Source: Linux `Documentation/networking/tproxy.rst`.
    """

    mark: int
    table: int
    family: Family = Family.IPV4


class Plan(NamedTuple):
    """All that a layout wants in one network namespace. It does not know how it will be applied.

    Attributes:
        layout: the name of the layout that made it.
        chains: in the order in which they are made.
        routes: the policy routes that TPROXY needs, one for each family.
        addresses: what the interface lo has besides, such as `::6/128`.
        optional: families whose chains may be left out, with a warning, where the machine has no such family.
    """

    layout: str
    chains: tuple[Chain, ...]
    routes: tuple[TproxyRoute, ...] = ()
    optional: frozenset[Family] = frozenset()
    addresses: tuple[str, ...] = ()

    def families(self) -> tuple[Family, ...]:
        """Return the families that have chains, IPv4 first."""
        return tuple(family for family in Family if any(chain.family is family for chain in self.chains))

    def only(self, families: tuple[Family, ...]) -> "Plan":
        """Return the part of the plan for `families`; families that were asked for by name are no longer optional."""
        return self._replace(
            chains=tuple(chain for chain in self.chains if chain.family in families),
            routes=tuple(route for route in self.routes if route.family in families),
            addresses=self.addresses if Family.IPV6 in families else (),
            optional=self.optional if set(families) == set(Family) else frozenset(),
        )


Marks = frozenset[tuple[Family, int]]  # packet marks, each of one family

BUILTIN_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})

# The chains that are ours, by name: those of both layouts, so that a switch of layouts leaves nothing behind. A chain of
# somebody else's that only begins like ours (ISTIO_CUSTOM) is foreign.
OWN_CHAINS = frozenset(
    {
        "ISTIO_INBOUND",
        "ISTIO_OUTPUT",
        "ISTIO_REDIRECT",
        "ISTIO_IN_REDIRECT",
        "ISTIO_DIVERT",
        "ISTIO_TPROXY",
        "ISTIO_DROP",
        "ISTIO_OUTPUT_DNS",
    },
)


NFT_TABLE = "istio-init"  # of native nftables: one for each family, and all of it is ours


class Ending(NamedTuple):
    """A foreign rule in a built-in chain, whose target ends the way of a packet through that chain.

    Attributes:
        chain: the built-in chain.
        text: the rule as iptables-save prints it, without `-A CHAIN`.
        is_ahead: whether a rule of ours stands behind it.
    """

    chain: str
    text: str
    is_ahead: bool


class TableState(NamedTuple):
    """What one table of one family holds: ours in full, of the others only what decisions need.

    Attributes:
        chains: each chain of ours with its rules.
        jumps: `(built-in chain, rule)` for each further rule of ours there, in order: it leads into a chain of ours, or
            bears our comment.
        inserted: those of them that stand before any foreign rule of their chain.
        endings: foreign rules that may keep packets from ours, in order.
        foreign: whether the table holds rules or chains that are not ours.
        users: `(our chain, foreign chain)` for each foreign chain that jumps to one of ours.
    """

    chains: dict[str, tuple[KernelRule, ...]]
    jumps: tuple[tuple[str, KernelRule], ...] = ()
    foreign: bool = False
    users: tuple[tuple[str, str], ...] = ()
    inserted: tuple[tuple[str, KernelRule], ...] = ()
    endings: tuple[Ending, ...] = ()


Snapshot = dict[Table, TableState]
