"""Targets: verdicts, jumps, and those that divert connections to a proxy or reject them."""

from __future__ import annotations

from istio_init.core.errors import Unsupported
from istio_init.rules.matches.conntrack import set_mark
from istio_init.rules.matches.kinds import ALL_BITS, Json, TargetType, parse_mark
from istio_init.rules.model import OWN_CHAINS, Table, Target, TargetKind
from istio_init.rules.values import number

# ICMP message in iptables-extensions(8) → its type and name in nft(8).
REJECTIONS = {
    "icmp-port-unreachable": ("icmp", "port-unreachable"),
    "icmp6-port-unreachable": ("icmpv6", "port-unreachable"),
}
# iptables-save always prints the default of TPROXY, "the address of the incoming interface".
DEFAULT_ADDRESSES = (["--on-ip", "0.0.0.0"], ["--on-ip", "::"])  # noqa: S104 - no address to listen on


class _Jump(TargetType):
    """A jump to a chain of ours; jumps to third-party chains stay opaque."""

    kind = TargetKind.JUMP
    effect = "jumps"

    def text(self, target: Target) -> str:
        return target.chain

    def parse(self, name: str, words: list[str]) -> Target | None:
        return Target(self.kind, chain=name) if name in OWN_CHAINS and not words else None

    def nft_text(self, target: Target, table: Table) -> str:
        return f"jump {table}_{target.chain}"

    def read(self, statements: list[Json], table: Table) -> Target | None:
        match statements:
            case [{"jump": {"target": str(chain)}}] if chain.startswith(f"{table}_"):
                return Target(self.kind, chain=chain.removeprefix(f"{table}_"))
        return None


class _Verdict(TargetType):
    """A target without options that is a verdict of the kernel itself."""

    def nft_text(self, target: Target, table: Table) -> str:
        del target, table
        return self.name.lower()

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        return Target(self.kind) if statements == [{self.name.lower(): None}] else None


class _Return(_Verdict):
    kind = TargetKind.RETURN
    name = "RETURN"
    effect = "returns"
    modules = (("RETURN", ""),)


class _Accept(_Verdict):
    kind = TargetKind.ACCEPT
    name = "ACCEPT"
    modules = (("ACCEPT", ""),)


class _Drop(_Verdict):
    kind = TargetKind.DROP
    name = "DROP"
    effect = "diverts"
    modules = (("DROP", ""),)


class _Reject(TargetType):
    kind = TargetKind.REJECT
    name = "REJECT"
    effect = "diverts"
    modules = (("REJECT", "{ip}t_REJECT"),)
    nft_modules = (("reject", "nft_reject"),)

    def text(self, target: Target) -> str:
        return f"REJECT --reject-with {target.reject_with}"

    def parse(self, name: str, words: list[str]) -> Target | None:
        del name
        match words:
            case ["--reject-with", message]:
                return Target(self.kind, reject_with=message)
        return None

    def nft_text(self, target: Target, table: Table) -> str:
        del table
        if target.reject_with not in REJECTIONS:
            raise Unsupported(f"nft cannot express {target.kind} {target.reject_with}")
        return "reject with {} type {}".format(*REJECTIONS[target.reject_with])

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        match statements:
            case [{"reject": {"type": str(kind), "expr": str(message)}}]:
                found = [name for name, words in REJECTIONS.items() if words == (kind, message)]
                return Target(self.kind, reject_with=found[0]) if found else None
        return None


class _Redirect(TargetType):
    kind = TargetKind.REDIRECT
    name = "REDIRECT"
    effect = "diverts"
    nft_modules = (("redirect", "nft_redir"),)

    def text(self, target: Target) -> str:
        return f"REDIRECT --to-ports {target.port}"

    def parse(self, name: str, words: list[str]) -> Target | None:
        del name
        match words:
            case ["--to-ports", port] if (found := number(port)) is not None:
                return Target(self.kind, port=found)
        return None

    def nft_text(self, target: Target, table: Table) -> str:
        del table
        return f"redirect to :{target.port}"

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        match statements:
            case [{"redirect": {"port": int(port)} as options}] if len(options) == 1:
                return Target(self.kind, port=port)
        return None


class _Tproxy(TargetType):
    """TPROXY drops packets if no proxy listens; nft's `tproxy` continues with the next rule, so that one must drop."""

    kind = TargetKind.TPROXY
    name = "TPROXY"
    effect = "diverts"
    nft_modules = (("tproxy", "nft_tproxy"),)
    nft_drops = "no proxy listens there, and no other socket may get it"

    def text(self, target: Target) -> str:
        return f"TPROXY --on-port {target.port} --tproxy-mark {target.mark:#x}{ALL_BITS}"

    def parse(self, name: str, words: list[str]) -> Target | None:
        del name
        match words:
            case ["--on-port", port, *address, "--tproxy-mark", text] if (found := number(port)) is not None:
                mark = parse_mark(text)
                if mark is not None and (not address or address in DEFAULT_ADDRESSES):
                    return Target(self.kind, port=found, mark=mark)
        return None

    def nft_text(self, target: Target, table: Table) -> str:
        del table
        return f"tproxy to :{target.port} meta mark set {target.mark:#x} accept"

    def read(self, statements: list[Json], table: Table) -> Target | None:
        del table
        match statements:
            case [{"tproxy": {"port": int(port)} as options}, change, {"accept": None}] if len(options) == 1:
                mark = set_mark(change)
                return None if mark is None else Target(self.kind, port=port, mark=mark)
        return None


TARGETS: tuple[TargetType, ...] = (_Jump(), _Return(), _Accept(), _Drop(), _Reject(), _Redirect(), _Tproxy())
