"""Where values come from: flags, environment variables, environment files, and the machine's user database.

Precedence, lowest first: default, environment file, environment variable, flag.
"""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING

from istio_init.errors import InvalidInput
from istio_init.options import ENABLE_INBOUND_IPV6, ENVOY_USER, OPTIONS
from istio_init.settings import Accounts, Settings, parse_settings
from istio_init.values import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

# Variable that names the file, and the file when it is not set: Istio 1.0.5. The later one wins.
ENVIRONMENT_FILES = (
    ("ISTIO_CLUSTER_CONFIG", "/var/lib/istio/envoy/cluster.env"),
    ("ISTIO_SIDECAR_CONFIG", "/var/lib/istio/envoy/sidecar.env"),
)
SHELL_SYNTAX = frozenset("'\"\\#")
FILE_FORM = "KEY=value lines as a shell reads them; quotes, `export`, blank lines and # comments are fine"

CAP_NET_ADMIN = 12  # linux/capability.h
CAP_NET_RAW = 13


def read_settings(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """Collect the values that were given, and validate them.

    Args:
        flags: `Option.name` → the value of its flag, or None where the flag was not given.
        environ: the environment variables.

    Raises:
        InvalidInput: a value, or an environment file, is not allowed.
    """
    return parse_settings(collect(flags, environ), Accounts(_uid_of, _gid_of))


def has_capability(number: int) -> bool:
    """Tell whether this thread has a capability in effect (proc(5), `CapEff` of its status)."""
    with open("/proc/thread-self/status", encoding="ascii") as status:  # noqa: PTH123 - pathlib is dear to import
        mask = next(line for line in status if line.startswith("CapEff:")).split()[1]
    return bool(int(mask, 16) >> number & 1)


def collect(flags: Mapping[str, str | None], environ: Mapping[str, str]) -> dict[str, Value]:
    """Give the value of each setting that has one, by precedence, not yet validated.

    Args:
        flags: as for `read_settings`.
        environ: the environment variables.

    Raises:
        InvalidInput: an environment file cannot be read, or has a line that is not KEY=value.
    """
    variables = _read_files(environ)
    variables.update({name: Value(text, f"${name}") for name, text in environ.items()})
    values: dict[str, Value] = {}
    for option in OPTIONS:
        flag = flags.get(option.name)
        if flag is not None:
            values[option.name] = Value(flag, "/".join(option.flags))
            continue
        for variable in option.variables:
            if variable in variables and (variables[variable].text or option.is_list):
                values[option.name] = variables[variable]
                break
    for name in (ENVOY_USER, ENABLE_INBOUND_IPV6):
        if name in variables and variables[name].text:
            values[name] = variables[name]
    return values


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
        with open(path, encoding="utf-8-sig") as file:  # noqa: PTH123 - pathlib is dear to import
            lines = file.read().split("\n")  # as a shell does; splitlines has more ideas of what ends a line
    except (OSError, ValueError) as error:
        raise InvalidInput(where, f"cannot read {path!r}: {error}", "the path of a readable text file") from None
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
    """Split a line as a shell does; a comment begins where a word begins with #.

    Raises:
        ValueError: a quotation has no end.
    """
    if not SHELL_SYNTAX & set(line):
        return line.split()  # shlex takes half a second for ten thousand CIDRs
    from io import StringIO  # noqa: PLC0415 - most files have no quotes
    from shlex import shlex  # noqa: PLC0415 - as above

    stream = StringIO(line)
    lexer = shlex(stream, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""  # shlex's own comments begin anywhere
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
