"""python-iptables, made to start fast and to fit the libxtables that is installed."""

from __future__ import annotations

import ctypes
import ctypes.util
import warnings
from functools import cache
from typing import Any

from istio_init.core.errors import Unsupported

# python-iptables asks `ctypes.util.find_library` for these, which starts ldconfig and gcc for each: a third of a second.
# The dynamic linker finds them by the names that they have had since iptables 1.4.
SONAMES = {"c": "libc.so.6", "ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2", "xtables": "libxtables.so.12"}

# Since iptables 1.8.11 an option of an extension (xtables.h: struct xt_option_entry) ends with one more number, `base`, that
# python-iptables 1.2 does not know: it would take the end of the first option for the second one. Only a function that came
# with it tells that it is there.
OF_1_8_11 = "xtables_strtoul_base"


@cache
def load() -> Any:
    """Import python-iptables.

    Raises:
        Unsupported: it, or a library that it needs, cannot be loaded.
    """
    find_library = ctypes.util.find_library
    ctypes.util.find_library = lambda name: SONAMES.get(name) or find_library(name)
    try:
        with warnings.catch_warnings():
            # Where it has not been compiled before, Python warns of its escape sequences; with -W error that is an error.
            warnings.simplefilter("ignore")
            import iptc
    except Exception as error:  # it raises whatever a missing library leads to
        message = f"python-iptables cannot be used here: {error}; use --backend restore"
        raise Unsupported(message) from error
    finally:
        ctypes.util.find_library = find_library
    fit(iptc.xtables)
    return iptc


def fit(xtables: Any) -> None:
    """Make python-iptables' module `xtables` fit the library that it has loaded."""
    if hasattr(xtables._lib_xtables, OF_1_8_11):  # noqa: SLF001 - there is no public way to it
        xtables.xtables._option_lookup = find_option  # noqa: SLF001 - as above


def find_option(_: object, options: Any, name: bytes) -> Any:
    """Find an option of an extension, as python-iptables' `xtables._option_lookup` does, in a table of longer ones.

    Args:
        options: a pointer to the first of them; one without a name ends the table.
        name: without its dashes.

    Returns:
        The option, in place, or None where there is none of this name.
    """
    entry = type(options.contents)
    longer = type("Entry", (ctypes.Structure,), {"_fields_": [*entry._fields_, ("base", ctypes.c_uint)]})
    address = ctypes.addressof(options.contents)
    while (option := entry.from_address(address)).name:
        if option.name == name:
            return option
        address += ctypes.sizeof(longer)
    return None
