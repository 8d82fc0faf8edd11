"""The sources of settings: flags, environment variables, environment files, and facts about the machine.

Precedence, lowest first: default, environment file, environment variable, flag.
"""

from __future__ import annotations

import grp
import os
import pwd

from istio_init.core.errors import InvalidInput, Unsupported
from istio_init.core.light import TYPE_CHECKING, socket
from istio_init.core.option import Option, Value
from istio_init.core.reading import read_file
from istio_init.rules.layout import ISTIO_1_0, Layout, find
from istio_init.rules.model import LOOPBACK_CIDR_IPV6, PROXY_SOURCE_IPV6
from istio_init.rules.options import ENABLE_INBOUND_IPV6, ENVOY_USER, OPTIONS
from istio_init.rules.settings import NO_FACTS, Accounts, HostFacts, Settings, parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# The variable that names the file, and its default, as in Istio 1.0.5. Later files take precedence.
ENVIRONMENT_FILES = (
    ("ISTIO_CLUSTER_CONFIG", "/var/lib/istio/envoy/cluster.env"),
    ("ISTIO_SIDECAR_CONFIG", "/var/lib/istio/envoy/sidecar.env"),
)
SHELL_SYNTAX = frozenset("'\"\\#")
FILE_FORM = "KEY=value lines in shell syntax; quotes, `export`, blank lines and # comments are allowed"

CAP_NET_ADMIN = 12  # linux/capability.h
CAP_NET_RAW = 13

RESOLV_CONF = "/etc/resolv.conf"
# setns(2) moves a thread, not the process, so the thread's namespace is the one that counts.
IPV4_ADDRESSES = "/proc/thread-self/net/fib_trie"
IPV6_ADDRESSES = "/proc/thread-self/net/if_inet6"
OWN_IPV6 = (LOOPBACK_CIDR_IPV6, PROXY_SOURCE_IPV6)
IPV4_IN_IPV6 = bytes(10) + b"\xff\xff"  # RFC 4291, 2.5.5.2


def read_settings(flags: Mapping[str, str | None], environ: Mapping[str, str], layout: str = ISTIO_1_0) -> Settings:
    """Collect the values from all sources, and validate them.

    Args:
        flags: `Option.name` → the value of its flag, or None if the flag was not given.
        environ: the environment variables.
        layout: name or alias of the layout.

    Raises:
        InvalidInput: a value is not allowed, or an environment file is unreadable or malformed.
        Unsupported: the machine's addresses cannot be read.
    """
    values = collect(flags, environ, layout)
    facts = read_host_facts() if find(layout).asks_host_facts else NO_FACTS
    return parse_settings(values, Accounts(_uid_of, _gid_of), layout, facts)


def has_environment_file(environ: Mapping[str, str]) -> bool:
    """Return whether one of the environment files is readable: only VMs, as Istio 1.0 sets them up, have them."""
    return any(os.access(environ.get(name) or default, os.R_OK) for name, default in ENVIRONMENT_FILES)


def has_capability(number: int, which: str = "CapEff") -> bool:
    """Return whether one of this thread's capability sets contains a capability; see `status` in proc(5).

    Args:
        number: the capability, CAP_* of linux/capability.h.
        which: the set: `CapEff` (effective), or `CapBnd` (bounding), the limit for the programs it starts.
    """
    return bool(int(_status(which), 16) >> number & 1)


def permitted_capabilities() -> int:
    """Return this thread's permitted capabilities, a bit for each; see `CapPrm` in proc(5)."""
    return int(_status("CapPrm"), 16)


def may_gain_privileges() -> bool:
    """Return whether child programs may gain file capabilities, that is, no_new_privs is not set (prctl(2))."""
    return _status("NoNewPrivs") == "0"


def _status(member: str) -> str:
    with open("/proc/thread-self/status", encoding="ascii") as status:
        return next(line for line in status if line.startswith(f"{member}:")).split()[1]


def collect(flags: Mapping[str, str | None], environ: Mapping[str, str], layout: str = ISTIO_1_0) -> dict[str, Value]:
    """Return the value of each setting that was given, by precedence, not yet validated.

    A variable that the layout does not read is ignored: it may be meant for another program. A flag is meant for this one.

    Args:
        flags: as for `read_settings`.
        environ: the environment variables.
        layout: name or alias of the layout.

    Raises:
        InvalidInput: an environment file cannot be read, or has a line that is not KEY=value.
    """
    chosen = find(layout)
    variables = _read_files(environ) if chosen.reads_environment_files else {}
    variables.update({name: Value(text, f"${name}") for name, text in environ.items()})
    values = choose(OPTIONS, flags, variables, chosen)
    for name in (ENVOY_USER,) if chosen.captures_ipv6 else (ENVOY_USER, ENABLE_INBOUND_IPV6):
        if name in variables and variables[name].text:
            values[name] = variables[name]
    return values


def choose(
    options: tuple[Option, ...], flags: Mapping[str, str | None], variables: Mapping[str, Value], layout: Layout
) -> dict[str, Value]:
    """Return, by `Option.name`, the value of each option that was given: of its flag, or else of its first variable.

    An empty variable counts as given only for a list.

    Args:
        options: the table.
        flags: `Option.name` → the value of its flag, or None where the flag was not given.
        variables: by their names.
        layout: variables that this layout does not read are ignored.
    """
    values: dict[str, Value] = {}
    for option in options:
        flag = flags.get(option.name)
        if flag is not None:
            values[option.name] = Value(flag, "/".join(option.flags))
            continue
        for variable in reversed(layout.variables_of(option)):
            if variable in variables and (variables[variable].text or option.is_list):
                values[option.name] = variables[variable]
                break
    return values


def read_host_facts() -> HostFacts:
    """Read the facts that a plan may depend on: the servers in resolv.conf, and this network namespace's addresses.

    Raises:
        Unsupported: the addresses cannot be read.
    """
    plain = [address for address, is_plain in _addresses() if is_plain]
    # Today's tool takes the first address that it meets; interfaces come in any order, so what counts here is whether
    # there is one of IPv4 at all.
    of_ipv6 = [address for address in plain if ":" in address]
    return HostFacts(_nameservers(), is_ipv6=plain == of_ipv6 != [], has_ipv6=bool(of_ipv6))


def local_addresses() -> frozenset[str]:
    """Return all addresses of this network namespace, in canonical form.

    Raises:
        Unsupported: the addresses cannot be read.
    """
    return frozenset(address for address, _ in _addresses())


def _addresses() -> Iterator[tuple[str, bool]]:
    """Yield each address, and whether it is neither loopback, nor link-local, nor one that an apply adds."""
    address = ""
    for words in _table(IPV4_ADDRESSES):
        if words[0] == "|--":
            address = words[1]
        elif words == ["/32", "host", "LOCAL"]:
            yield address, not address.startswith(("127.", "169.254."))
    for digits, *_ in _table(IPV6_ADDRESSES):
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        # Link-local is fe80::/10 (RFC 4291, 2.5.6).
        yield address, not (digits.startswith(("fe8", "fe9", "fea", "feb")) or f"{address}/128" in OWN_IPV6)


def _table(path: str) -> list[list[str]]:
    """Read a table in /proc as lists of fields; empty if the kernel lacks IPv6 and the table is its."""
    try:
        with open(path, encoding="ascii") as file:
            return [words for words in map(str.split, file) if words]
    except FileNotFoundError:
        if path == IPV6_ADDRESSES:
            return []
        raise Unsupported(f"there is no {path!r}, which lists this network namespace's addresses; mount /proc") from None
    except OSError as error:
        raise Unsupported(f"cannot read {path!r}: {error.strerror}; mount /proc") from None


def _nameservers() -> tuple[str, ...]:
    """Return the servers that a resolver would use, skipping invalid lines as it does (resolv.conf(5))."""
    try:
        with open(RESOLV_CONF, encoding="latin-1") as file:
            lines = [line for line in file if line.startswith(("nameserver ", "nameserver\t"))]
    except OSError:
        return ()
    words = (line.partition("#")[0].partition(";")[0].split()[1:] for line in lines)
    servers = (_server(word) for word, *_ in filter(None, words))
    return tuple(dict.fromkeys(filter(None, servers)))


def _server(text: str) -> str:
    """Return the canonical form of a server's address, or "" if it is not an address."""
    try:
        if ":" not in text:
            return socket.inet_ntoa(socket.inet_aton(text))  # as glibc: 127.1 is 127.0.0.1
        packed = socket.inet_pton(socket.AF_INET6, text.partition("%")[0])
    except (OSError, ValueError):  # a zero byte is a ValueError
        return ""
    if packed.startswith(IPV4_IN_IPV6):
        return socket.inet_ntoa(packed.removeprefix(IPV4_IN_IPV6))
    return socket.inet_ntop(socket.AF_INET6, packed)


def _read_files(environ: Mapping[str, str]) -> dict[str, Value]:
    variables: dict[str, Value] = {}
    for name, default in ENVIRONMENT_FILES:
        # The old script sourced the files, so the first one may name the second.
        path = environ.get(name) or (variables[name].text if name in variables else "")
        if path or os.access(default, os.R_OK):
            variables.update(_read_file(path or default, f"${name}" if path else default))
    return variables


def _read_file(path: str, where: str) -> dict[str, Value]:
    try:
        text = read_file(path, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "UTF-8") from None
    # As a shell does; splitlines also splits at other characters.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    variables: dict[str, Value] = {}
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        try:
            words = _words(line)
        except ValueError as error:
            raise InvalidInput(place, f"{line!r}: {error}", FILE_FORM) from None
        for word in words[1:] if words[:1] == ["export"] else words:
            key, equals, text = word.partition("=")
            if not (equals and key.isidentifier() and key.isascii()):
                raise InvalidInput(place, f"{line!r} is not KEY=value", FILE_FORM)
            variables[key] = Value(text, f"${key} ({place})")
    return variables


def _words(line: str) -> list[str]:
    """Split a line as a shell does; a word that starts with # starts a comment.

    Raises:
        ValueError: a quotation is not closed.
    """
    if not SHELL_SYNTAX & set(line):
        return line.split()  # shlex takes half a second for ten thousand CIDRs
    from io import StringIO
    from shlex import shlex

    stream = StringIO(line)
    lexer = shlex(stream, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""  # shlex's own comments start anywhere, even inside a word
    words: list[str] = []
    while not line[stream.tell() :].lstrip().startswith("#"):
        word = lexer.get_token()
        if word is None:
            break
        words.append(word)
    return words


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):  # a name with a zero byte is a ValueError
        return None


def _gid_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):  # a name with a zero byte is a ValueError
        return None
