"""python-iptables beside a libxtables that is newer than it knows."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from istio_init.rules.kernel import iptc_library

NAMES = (b"uid-owner", b"gid-owner", b"socket-exists", None)


def test_each_option_of_an_extension_is_found_in_a_table_of_longer_ones() -> None:
    entry = iptc_library.load().xtables.xt_option_entry
    since_1_8_11: Any = type("Entry", (ctypes.Structure,), {"_fields_": [*entry._fields_, ("base", ctypes.c_uint)]})
    table = (since_1_8_11 * len(NAMES))(*((name, 0, number) for number, name in enumerate(NAMES)))
    options = ctypes.cast(table, ctypes.POINTER(entry))
    for number, name in enumerate(NAMES[:-1]):
        found = iptc_library.find_option(None, options, name)
        assert (found.name, found.id) == (name, number)
        assert ctypes.addressof(found) == ctypes.addressof(table[number]), "libxtables reads what stands behind"
    assert iptc_library.find_option(None, options, b"none") is None


@pytest.mark.parametrize(
    ("exports", "is_replaced"),
    [({}, False), ({"xtables_strtoul_base": None}, True)],
    ids=["up to 1.8.10", "since 1.8.11"],
)
def test_only_for_a_newer_libxtables_is_the_search_replaced(exports: dict[str, None], *, is_replaced: bool) -> None:
    xtables = SimpleNamespace(_option_lookup="its own")
    iptc_library.fit(SimpleNamespace(_lib_xtables=SimpleNamespace(**exports), xtables=xtables))
    assert vars(xtables) == {"_option_lookup": iptc_library.find_option if is_replaced else "its own"}
