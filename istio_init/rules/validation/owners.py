"""Sockets in the name of another user, which is what rules on the owner of a connection look at."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_init.rules.model import UINT32_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = -1  # no such id: it changes nothing, and the answer is the one that counts (setfsuid(2))


@contextmanager
def owned_by(uid: int, gid: int) -> Iterator[None]:
    """Make the files of a block, sockets included, this user's and group's.

    The owner match compares the ids for files that a thread had when it made a socket (xt_owner), so nothing else of this
    process need change, and whoever uses the socket later does not matter.

    Args:
        uid: a user for whom `may_be` is true.
        gid: a group of the same kind.
    """
    libc = ctypes.CDLL(None)
    # The group first on the way there, and last on the way back: another user may have lost the right to change it.
    own_gid = libc.setfsgid(gid)
    own_uid = libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(own_uid)
        libc.setfsgid(own_gid)


def may_be(uid: int, gid: int) -> bool:
    """Return whether this process may make sockets in the name of a user and group.

    It is tried: of a user that a user namespace does not know, no capability makes anything (user_namespaces(7)).
    """
    libc = ctypes.CDLL(None)
    with owned_by(uid, gid):
        return (libc.setfsuid(NOBODY) & UINT32_MAX, libc.setfsgid(NOBODY) & UINT32_MAX) == (uid, gid)
