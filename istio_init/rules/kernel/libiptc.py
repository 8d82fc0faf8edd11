"""The libiptc backend: reads and writes legacy tables through python-iptables, without running a program.

It makes one commit per table and never uses auto-commit. python-iptables takes no lock, so this module takes the one that
iptables-legacy takes.

Each family is handled in a forked child process, for two reasons. libxtables registers an extension only for the family in
use when the extension is loaded, and not for the other one later (1.8.9: TPROXY, REDIRECT and multiport). And some errors
make libxtables exit the process.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from istio_init.core.errors import IstioInitError, NotPermitted, Unsupported
from istio_init.rules.kernel import iptc_library
from istio_init.rules.kernel.backend import Backend, Changes, Reading, Readings, Unread, Whole
from istio_init.rules.kernel.host import NODE_CHAINS
from istio_init.rules.kernel.iptc_reading import Raw, chains_of, entries_of, library_errors, read_rule
from istio_init.rules.kernel.legacy import (
    LOCK_FILE_REMEDY,
    XTABLES_LOCK,
    XTABLES_LOCK_VARIABLE,
    is_lock_chosen,
    is_lock_of_others,
    legacy_tables,
    lock_notice,
    lock_path,
    own_lock_file,
)
from istio_init.rules.kernel.locks import flock
from istio_init.rules.kernel.remedies import missing_capability, remedy_for_refusal
from istio_init.rules.kernel.rule_sets import RuleSet
from istio_init.rules.kernel.user_namespaces import is_owner_hidden
from istio_init.rules.matches import MATCHES
from istio_init.rules.matches.kinds import OF_PROTOCOL
from istio_init.rules.model import (
    Family,
    KernelRule,
    OpaqueRule,
    Rule,
    Snapshot,
    Table,
    TableState,
    Variant,
)
from istio_init.rules.render.iptables import TableReader, protocol_of, render_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from istio_init.rules.changes import TableChange

T = TypeVar("T")

TRIAL_CHAIN = "ISTIO_INIT_TRIAL"

INTERFACE_BYTES = 16  # linux/if.h: IFNAMSIZ


class LibiptcBackend(Backend):
    """Reads and writes legacy tables through library calls.

    Args:
        waits: how long to wait for locks and for tools.
    """

    name = "libiptc"
    rule_sets = frozenset({RuleSet.LEGACY})

    def variants(self, families: tuple[Family, ...]) -> dict[Family, Variant]:
        """Return legacy, the only variant that libiptc supports."""
        return dict.fromkeys(families, Variant.LEGACY)

    def read(self, families: tuple[Family, ...]) -> Readings:
        """Read the tables that exist, without creating any."""
        return {family: self._read(family) for family in families}

    def _read(self, family: Family) -> Reading:
        try:
            tables, noted = _apart(_read_family, family)
        except Unsupported as error:
            return Unread(error)
        self.node_chains |= noted
        return Whole(tables)

    def probe(self, tables: Mapping[Family, Table]) -> dict[Family, str]:
        """Add an empty chain to each table, and remove it again."""
        broken = {}
        for family, name in tables.items():
            try:
                _apart(_try, family, name)
            except IstioInitError as error:
                broken[family] = str(error)
        return broken

    def commit(self, changes: Changes) -> dict[Family, IstioInitError]:
        """Commit table by table; a family stops at its first failure."""
        failed: dict[Family, IstioInitError] = {}
        for family, wanted in changes.items():
            try:
                _apart(_commit, family, wanted)
            except IstioInitError as error:
                failed[family] = error
        return failed

    @contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Also take the lock of iptables-legacy, which python-iptables does not take."""
        path = os.environ.get(XTABLES_LOCK_VARIABLE, XTABLES_LOCK)
        with super().locked() as hold, _lock_file(path, self.notices.append) as lock:
            flock(lock, self.waits.lock, f"the xtables lock {path}")
            yield hold


@contextmanager
def _lock_file(path: str, note: Callable[[str], None]) -> Iterator[int]:
    try:
        # Opening a FIFO would block until it has a writer.
        flags = os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        lock = own_lock_file() if is_lock_of_others() else os.open(path, flags, 0o600)
    except OSError as error:
        if remedy := missing_capability(needs_raw=True):
            # The lock file is only the first thing to fail.
            message = f"libiptc may not work on legacy tables: {remedy}"
            raise NotPermitted(message) from None
        if is_lock_chosen():
            message = f"cannot open the xtables lock {path!r}: {error.strerror}; {LOCK_FILE_REMEDY}"
            raise Unsupported(message) from None
        lock = own_lock_file()
        note(lock_notice(os.strerror(error.errno or 0), lock_path(lock)))
    try:
        yield lock
    finally:
        os.close(lock)


def _apart(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a forked child process; return what it returns, or raise what it raises.

    Raises:
        Unsupported: the child exited without a result.
    """
    iptc_library.load()  # once here, rather than in each child
    if sys.stdout:  # None where it was closed from the start
        sys.stdout.flush()  # the child would write the buffered bytes a second time
    messages = os.memfd_create("xtables")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns that other threads may hold locks; the child needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _run_child(writing, messages, function, arguments)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe, os.fdopen(messages, "rb") as stderr:
        outcome = pipe.read()
        _, status = os.waitpid(child, 0)
        if not outcome:
            stderr.seek(0)
            text = stderr.read().decode(errors="replace").strip() or "no message"
            message = f"libiptc exited with status {os.waitstatus_to_exitcode(status)}: {text}; try --backend restore"
            raise Unsupported(message)
    result: T | Exception = pickle.loads(outcome)  # noqa: S301 - written by a fork of this process
    if isinstance(result, Exception):
        raise result
    return result


def _run_child(writing: int, messages: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Pickle a function's result, or the exception that it raises, to `writing`, and exit; stderr goes to `messages`."""
    try:
        os.dup2(messages, 2)
        if sys.stdout is None:  # python-iptables flushes it
            sys.stdout = open(os.devnull, "w", encoding="ascii")  # noqa: SIM115 - for the rest of this process
        try:
            result: object = function(*arguments)
        except Exception as error:  # noqa: BLE001 - raised again in the parent
            result = error
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
    finally:
        os._exit(0)


def _open(family: Family, name: Table) -> Any:
    iptc = iptc_library.load()
    kind = iptc.Table if family is Family.IPV4 else iptc.Table6
    # To tell a chain from an extension, python-iptables looks the name up in every table that it believes to exist, which
    # creates them all. Rules can only jump to chains of their own table, so that one is enough.
    kind.existing_table_names.update({other: other == name for other in kind.ALL})
    table = kind(name.value, autocommit=False)
    table.refresh()
    return table


def _read_family(family: Family) -> tuple[Snapshot, set[str]]:
    """Return our rules, and the chains that only a Kubernetes node has."""
    noted: set[str] = set()
    try:
        return {name: _read_table(family, name, noted) for name in legacy_tables(family)}, noted
    except library_errors() as error:
        raise _failure(error, family, "") from error


def _try(family: Family, name: Table) -> None:
    try:
        for make in ("create_chain", "delete_chain"):
            table = _open(family, name)
            getattr(table, make)(TRIAL_CHAIN)
            table.commit()
    except library_errors() as error:
        raise _failure(error, family, name) from error


def _read_table(family: Family, name: Table, noted: set[str]) -> TableState:
    table = _open(family, name)
    reader = TableReader(name)
    for chain in chains_of(table):
        noted.update(NODE_CHAINS & {chain})
        reader.add_chain(chain, table.get_policy(chain)[0].name if table.builtin_chain(chain) else "-")
        for entry in entries_of(table, chain):
            reader.add_rule(chain, *read_rule(table, chain, entry))
    return reader.state()


def _commit(family: Family, changes: list[TableChange]) -> None:
    """Prepare all changes before committing the first, so that the commits follow each other closely."""
    name = ""
    try:
        prepared = []
        for change in changes:
            name = change.table
            prepared.append(_prepared(family, change))
        for table in prepared:
            name = table.name
            table.commit()
    except library_errors() as error:
        raise _failure(error, family, name) from error


def _prepared(family: Family, change: TableChange) -> Any:
    """Return a table with an uncommitted change; the kernel is not touched before its commit, which is atomic."""
    table = _open(family, change.table)
    for name in (*change.chains, *change.dropped):
        if table.is_chain(name):
            table.flush_entries(name)
        else:
            table.create_chain(name)
    for name, rule in change.removed_jumps:
        entry, mask = map(_buffer, _raw(family, rule))
        table.delete_entry(name, entry, mask)
    for name, rules in change.chains.items():
        for rule in rules:
            table.append_entry(name, _buffer(_raw(family, rule).entry))
    for name, rule in reversed(change.inserted_jumps):
        table.insert_entry(name, _buffer(_raw(family, rule).entry), 0)
    for name, rule in change.added_jumps:
        table.append_entry(name, _buffer(_raw(family, rule).entry))
    for name in change.dropped:
        table.delete_chain(name)
    return table


def _buffer(raw: bytes) -> Any:
    return (ctypes.c_ubyte * len(raw)).from_buffer_copy(raw)


def _raw(family: Family, rule: KernelRule) -> Raw:
    """Convert a rule to libiptc's binary form."""
    if isinstance(rule, OpaqueRule):
        return cast("Raw", rule.native)
    native = _native(family, rule)
    native.final_check()
    return Raw(bytes(native.rule), bytes(native.mask))


def _native(family: Family, rule: Rule) -> Any:
    """Convert a rule to a python-iptables rule."""
    iptc = iptc_library.load()
    native = iptc.Rule() if family is Family.IPV4 else iptc.Rule6()
    for match in rule.matches:
        known = MATCHES[match.kind]
        value = f"{'!' * match.negated}{known.text(match.value)}"
        if known.attribute:
            setattr(native, known.attribute, value)
            if family is Family.IPV6 and known.ipv6_mask:
                setattr(native.entry.ipv6, known.ipv6_mask, _interface_mask(str(match.value)))
            continue
        made = native.create_match(protocol_of(rule) if known.extension == OF_PROTOCOL else known.extension)
        if known.option:
            made.set_parameter(known.option.removeprefix("--"), value)
    _, name, *words = render_target(rule.target).split()
    target = native.create_target(name)
    for index, word in enumerate(words):
        if word.startswith("--"):
            after = words[index + 1 : index + 2]
            # An option followed by another option, such as --save-mark, has no value.
            target.set_parameter(word.removeprefix("--"), "".join(one for one in after if not one.startswith("--")))
    return native


def _interface_mask(name: str) -> bytes:
    """Return the mask that compares the whole name and its terminating zero byte, or the prefix before a trailing `+`."""
    compared = len(name.encode()) + 1 if not name.endswith("+") else len(name.encode()) - 1
    return (b"\xff" * compared).ljust(INTERFACE_BYTES, b"\0")


def _failure(error: Exception, family: Family, table: str) -> IstioInitError:
    where = f"libiptc, table {table} of {family}: {error}" if table else f"libiptc, {family}: {error}"
    if missing_capability(needs_raw=True) or is_owner_hidden():
        return NotPermitted(f"{where}; {remedy_for_refusal(needs_raw=True)}")
    return Unsupported(f"{where}; the kernel may lack legacy tables or a module (see `dmesg`), try --backend restore")
