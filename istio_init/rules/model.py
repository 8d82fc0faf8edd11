"""The data model: what plans consist of, and what is read from a kernel.

Everything here is immutable and compares by value. Every pod start waits for this import, so the classes are
`typing.NamedTuple`, not dataclasses (0.13 ms instead of 0.6 ms each), and annotations are not strings: with
`from __future__ import annotations`, each would be compiled separately, which takes longer than everything else.
"""

from istio_init.core.light import NamedTuple, StrEnum

# Ports, ids and names that pods and control planes agree on (Istio 1.0.5, `tools/deb/istio-iptables.sh`, unless noted).
ENVOY_PORT = 15001
INBOUND_PORT = 15006  # today's meshes; Istio 1.0 uses ENVOY_PORT for both directions
HEALTH_PORT = 15020  # the agent's: health, and merged metrics of app and proxy
READINESS_PORT = 15021
DNS_PORT = 15053
PROXY_UID = 1337
TPROXY_MARK = 1337
TPROXY_ROUTE_TABLE = 133
NO_MARK = 0  # of packets that nothing has marked
SSH_PORT = 22
TUNNEL_PORT = 15008  # HBONE, in today's meshes
RESOLVER_PORT = 53
LOOP_MARK = 1338  # with TPROXY: the proxy's packets to its own pod that must be captured again (Istio)
LOOPBACK_CIDR = "127.0.0.1/32"
LOOPBACK_CIDR_IPV6 = "::1/128"
PROXY_SOURCE = "127.0.0.6/32"  # source address from which today's proxy connects to its app
PROXY_SOURCE_IPV6 = "::6/128"
ANY_IPV4 = "0.0.0.0/0"
ANY_IPV6 = "::/0"
OWNER_COMMENT = "istio-init"  # marks our rules in chains that are not ours
FIRST_COMMENT = "istio-init-first"  # the same, for rules that must stand before all others (--jump first)
UINT32_MAX = 4294967295


class Family(StrEnum):
    """An address family; each has its own tables in the kernel."""

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


class Jump(StrEnum):
    """Where our rules stand in a built-in chain."""

    FIRST = "first"  # before third-party rules, whenever those came
    LAST = "last"  # behind the third-party rules that were there when ours were written


class Variant(StrEnum):
    """The kernel interface of an iptables binary; `PLAIN` is `iptables` without a suffix, whatever it links to."""

    LEGACY = "legacy"
    NFT = "nft"
    PLAIN = "plain"


class MatchKind(StrEnum):
    """What a match examines, in the order in which iptables-save prints matches."""

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
        negated: whether the condition holds if `value` does *not* match.
    """

    kind: MatchKind
    value: int | str = ""
    negated: bool = False


OURS = Match(MatchKind.COMMENT, OWNER_COMMENT)
FIRST = Match(MatchKind.COMMENT, FIRST_COMMENT)


class TargetKind(StrEnum):
    """What happens to a packet that matches, named as in iptables-extensions(8)."""

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
        chain: the destination of a `JUMP`.
        port: the port of a `REDIRECT` or `TPROXY`.
        mark: the packet mark that `TPROXY` or `MARK` sets, all 32 bits of it.
        zone: the conntrack zone of a `ZONE` (CT --zone).
        reject_with: the ICMP message of a `REJECT`. Its name depends on the family, and the other family rejects it.
    """

    kind: TargetKind
    chain: str = ""
    port: int | None = None
    mark: int | None = None
    reject_with: str = ""
    zone: int | None = None


class Reason(NamedTuple):
    """Why a rule exists: an id for programs, and a sentence for people, which is `str(reason)`.

    The layouts share one table of reasons without values; `of` returns the reason for one rule.

    Attributes:
        id: stable, and unique across all layouts.
        template: the sentence, with `{value}` as placeholder for the value.
        value: the value as text, such as a CIDR.
        plural: the sentence for several values, used where rules are merged. The noun to be counted is in braces:
            `{ports} are excluded` becomes "ports 1, 3 are excluded" or "2,000 ports are excluded".
    """

    id: str = ""
    template: str = ""
    value: str = ""
    plural: str = ""

    def of(self, value: int | str) -> "Reason":
        """Return this reason for one value."""
        return Reason(self.id, self.template, str(value), self.plural)

    def __str__(self) -> str:
        """Return the sentence."""
        return self.template.replace("{value}", self.value)


NO_REASON = Reason()


class Rule(NamedTuple):
    """One rule of a chain, and the reason why it exists (for a rule read from a kernel: its nft comment, or `NO_REASON`)."""

    matches: tuple[Match, ...]
    target: Target
    reason: Reason = NO_REASON

    @property
    def why(self) -> str:
        """The reason as a sentence."""
        return str(self.reason)

    def does_the_same_as(self, other: "KernelRule") -> bool:
        """Return whether two rules have the same effect, regardless of their reasons and of the order of their matches."""
        if not isinstance(other, Rule) or self.target != other.target:
            return False
        return self.matches == other.matches or frozenset(self.matches) == frozenset(other.matches)


class OpaqueRule(NamedTuple):
    """A rule read from a kernel that this model cannot express; kept so that a rollback can restore it.

    Attributes:
        text: the rule as iptables-save prints it, without `-A CHAIN`.
        native: the backend's own object for it, if text is not enough.
    """

    text: str
    native: object = None

    def does_the_same_as(self, other: "KernelRule") -> bool:
        """Return whether both rules have the same text."""
        return isinstance(other, OpaqueRule) and self.text == other.text


KernelRule = Rule | OpaqueRule


class Chain(NamedTuple):
    """Rules for one chain of one table, in order.

    Attributes:
        rules: the whole content of a chain of ours; for a built-in chain, the rules to append.
        inserted: rules at the head of a built-in chain, in their final order.
    """

    family: Family
    table: Table
    name: str
    rules: tuple[Rule, ...]
    inserted: tuple[Rule, ...] = ()


class TproxyRoute(NamedTuple):
    """The policy routing that delivers marked packets locally: rule `fwmark mark → table`, route `local default dev lo`.

    With `NO_MARK`, it is a route of ours that no rule of ours uses.

    Source: Linux `Documentation/networking/tproxy.rst`.
    """

    mark: int
    table: int
    family: Family = Family.IPV4


class Plan(NamedTuple):
    """The desired state of one network namespace, independent of how it is applied.

    Attributes:
        layout: name of the layout that built it.
        chains: in the order in which they are created.
        routes: the policy routes that TPROXY needs, one per family.
        optional: families whose chains may be left out, with a warning, if the machine lacks the family.
        addresses: additional addresses of lo, as CIDRs, such as `::6/128`.
    """

    layout: str
    chains: tuple[Chain, ...]
    routes: tuple[TproxyRoute, ...] = ()
    optional: frozenset[Family] = frozenset()
    addresses: tuple[str, ...] = ()

    def families(self) -> tuple[Family, ...]:
        """Return the families that have chains, IPv4 first."""
        return tuple(family for family in Family if any(chain.family is family for chain in self.chains))

    def closes_ipv6(self) -> bool:
        """Return whether the plan rejects connections from outside over IPv6."""
        return any(
            rule.target.kind is TargetKind.REJECT
            for chain in self.chains
            if chain.family is Family.IPV6
            for rule in chain.rules
        )

    def only(self, families: tuple[Family, ...]) -> "Plan":
        """Return the part of the plan for `families`; a family that was requested explicitly is no longer optional."""
        return self._replace(
            chains=tuple(chain for chain in self.chains if chain.family in families),
            routes=tuple(route for route in self.routes if route.family in families),
            addresses=self.addresses if Family.IPV6 in families else (),
            optional=self.optional if set(families) == set(Family) else frozenset(),
        )


Marks = frozenset[tuple[Family, int]]  # packet marks, each of one family

BUILTIN_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})

# The names of our chains, in all layouts, by the tables in which a layout has them, so that switching layouts leaves nothing
# behind. A third party's chain that only shares the prefix (ISTIO_CUSTOM), or has such a name elsewhere, is foreign.
CHAINS_OF = {
    Table.RAW: frozenset({"ISTIO_INBOUND", "ISTIO_OUTPUT_DNS"}),
    Table.MANGLE: frozenset({"ISTIO_INBOUND", "ISTIO_DIVERT", "ISTIO_TPROXY", "ISTIO_DROP"}),
    Table.NAT: frozenset({"ISTIO_INBOUND", "ISTIO_OUTPUT", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT_DNS"}),
    Table.FILTER: frozenset({"ISTIO_INBOUND"}),
}
OWN_CHAINS = frozenset().union(*CHAINS_OF.values())


NFT_TABLE = "istio-init"  # native nftables: one table per family, which is entirely ours


class Foreign(NamedTuple):
    """A third-party rule.

    Attributes:
        text: the rule as iptables-save prints it, without `-A CHAIN`; what that syntax cannot express is in brackets.
        handle: its number in nf_tables, where iptables cannot print it; 0 where it can.
    """

    text: str
    handle: int = 0


class Theirs(NamedTuple):
    """What a table holds that is not ours.

    Attributes:
        rules: the third-party rules of each chain that is not ours, in order; built-in chains that exist are always named.
        ahead: how many third-party rules of a built-in chain precede the last of ours there.
        dropping: built-in chains whose policy is DROP.
    """

    rules: dict[str, tuple[Foreign, ...]]
    ahead: dict[str, int]
    dropping: frozenset[str] = frozenset()


NOT_READ = Theirs({}, {})


class TableState(NamedTuple):
    """The state of one table of one family: our rules in full, third-party ones only as far as decisions need them.

    Attributes:
        chains: our chains, with their rules.
        jumps: `(built-in chain, rule)` for each rule of ours in a built-in chain, in order, except those in `inserted`.
            Such a rule jumps to a chain of ours or carries our comment.
        foreign: whether the table holds rules or chains that are not ours.
        users: `(our chain, foreign chain)` for each foreign chain that jumps to one of ours.
        inserted: like `jumps`, but those that precede all third-party rules of their chain.
        theirs: what else the table holds.
    """

    chains: dict[str, tuple[KernelRule, ...]]
    jumps: tuple[tuple[str, KernelRule], ...] = ()
    foreign: bool = False
    users: tuple[tuple[str, str], ...] = ()
    inserted: tuple[tuple[str, KernelRule], ...] = ()
    theirs: Theirs = NOT_READ


Snapshot = dict[Table, TableState]
