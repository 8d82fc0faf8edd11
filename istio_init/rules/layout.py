"""The layouts by name. A new layout is a row here, a module and its row in `layouts`, and test cases.

No code compares layout names: what differs between layouts is a trait of the row, or a table elsewhere that is keyed by
these names and read with `entry`.
"""

from __future__ import annotations

from istio_init.core.errors import InvalidInput
from istio_init.core.light import TYPE_CHECKING, NamedTuple
from istio_init.rules.model import INBOUND_PORT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from istio_init.core.option import Option

    T = TypeVar("T")

ISTIO_1_0, ISTIO_1_30 = "istio-1.0", "istio-1.30"
CURRENT = "current"


class Layout(NamedTuple):
    """One layout.

    Attributes:
        name: what users write, and what the log shows.
        version: of the Istio whose rules they are, and whose settings it can express.
        captures_ipv6: whether IPv6 can be captured; if not, what comes in over IPv6 is rejected, unless
            ENABLE_INBOUND_IPV6 opens it.
        captures_udp: whether anything of UDP can be captured.
        inbound_port: the default of `inbound_capture_port`; None for one port for both directions.
        is_root_proxy: whether root is among the proxy's users by default.
        reserves_loop_mark: whether `LOOP_MARK` marks packets, so that TPROXY needs another mark.
        reads_environment_files: whether variables come from environment files, too.
        reads_old_variables: whether it reads the variables that only Istio 1.0 knows.
        asks_host_facts: whether the plan depends on `HostFacts` of `istio_init.rules.settings`.
    """

    name: str
    version: tuple[int, int]
    captures_ipv6: bool
    captures_udp: bool
    inbound_port: int | None
    is_root_proxy: bool
    reserves_loop_mark: bool
    reads_environment_files: bool
    reads_old_variables: bool
    asks_host_facts: bool

    def has(self, option: Option) -> bool:
        """Return whether the layout supports a setting."""
        return self.version >= option.since

    def variables_of(self, option: Option) -> tuple[str, ...]:
        """Return the environment variables that set an option in this layout; the last one wins."""
        if not self.has(option):
            return ()
        ignored = () if self.reads_old_variables else option.old_variables
        return tuple(variable for variable in option.variables if variable not in ignored)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            ISTIO_1_0,
            version=(1, 0),
            captures_ipv6=False,
            captures_udp=False,
            inbound_port=None,
            is_root_proxy=True,  # on virtual machines, its agent fetches certificates as root
            reserves_loop_mark=False,
            reads_environment_files=True,
            reads_old_variables=True,
            asks_host_facts=False,
        ),
        Layout(
            ISTIO_1_30,
            version=(1, 30),
            captures_ipv6=True,
            captures_udp=True,  # DNS
            inbound_port=INBOUND_PORT,
            is_root_proxy=False,
            reserves_loop_mark=True,
            reads_environment_files=False,
            reads_old_variables=False,  # a Service named `envoy` sets ENVOY_PORT=tcp://...
            asks_host_facts=True,
        ),
    )
}
ALIASES = {CURRENT: ISTIO_1_30}
NAMES = (*LAYOUTS, *ALIASES)  # what users may write


def find(name: str, where: str = "--layout") -> Layout:
    """Return a layout by name or alias.

    Args:
        name: as the user wrote it.
        where: the flag or variable that gave it, for the error.

    Raises:
        InvalidInput: there is no such layout.
    """
    layout = LAYOUTS.get(ALIASES.get(name, name))
    if layout is None:
        raise InvalidInput(where, f"{name!r} is not a layout", " or ".join(NAMES))
    return layout


def names_with(trait: Callable[[Layout], bool]) -> tuple[str, ...]:
    """Return the names of the layouts with a trait, for errors that suggest an alternative."""
    return tuple(layout.name for layout in LAYOUTS.values() if trait(layout))


def entry(table: Mapping[str, T], name: str, what: str) -> T:
    """Return a layout's entry in a table that is keyed by layout names.

    Args:
        table: layout name → entry.
        name: name or alias of the layout.
        what: what the table's entries are, for the error.

    Raises:
        InvalidInput: there is no such layout, or the table has no entry for it.
    """
    layout = find(name)
    if layout.name not in table:
        raise InvalidInput("--layout", f"{layout.name!r} has no {what}", ", ".join(table))
    return table[layout.name]
