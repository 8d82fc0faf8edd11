"""Creates sockets that belong to another user, for the rules that match the owner of a connection."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

from istio_init.rules.model import UINT32_MAX

if TYPE_CHECKING:
    from collections.abc import Iterator

INVALID_ID = -1  # setting it changes nothing, and returns the current id (setfsuid(2))


@contextmanager
def owned_by(uid: int, gid: int) -> Iterator[None]:
    """Create files, including sockets, as another user and group during a block.

    The owner match compares the filesystem ids that a thread had when it created the socket (xt_owner), so no other ids of
    this process need to change, and it does not matter which process uses the socket later.

    Args:
        uid: the user.
        gid: the group; `may_be` must be true for both.
    """
    libc = ctypes.CDLL(None)
    # The group is set first and reset last, because the other user may not be permitted to change it.
    own_gid = libc.setfsgid(gid)
    own_uid = libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(own_uid)
        libc.setfsgid(own_gid)


def may_be(uid: int, gid: int) -> bool:
    """Return whether this process may create sockets as a user and group.

    This is found out by trying: an id that is not mapped in a user namespace cannot be used, whatever the capabilities
    (user_namespaces(7)).
    """
    libc = ctypes.CDLL(None)
    with owned_by(uid, gid):
        return (libc.setfsuid(INVALID_ID) & UINT32_MAX, libc.setfsgid(INVALID_ID) & UINT32_MAX) == (uid, gid)
