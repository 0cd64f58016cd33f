"""The door for clients of the house: no socket, no question who that is, no rules; a bridge's own client comes in by it.

Only what holds this object can use it, so a name that is reserved for who comes by it cannot be had over a network.
"""

from __future__ import annotations

import socket
from typing import Final

from broker.core.access import Access
from broker.core.allowance import Allowance, LimitOverrides
from broker.core.limits import Limits
from broker.net.bound_socket import BoundSocket
from broker.net.listener import Listener
from broker.net.locks import Guard, Lock

INSIDE: Final = "inside"
"""In the place of a listener's URL. No listener has one without a scheme."""

_LIMITS: Final = LimitOverrides(
    session_expiry_s_max=0xFFFF_FFFF,  # its Session lives as long as the broker wants it to
    publish_per_s_max=0,
    receive_bytes_per_s_max=0,
    connects_per_client_id_per_s_max=0,
    client_id_bytes_max=65_535,
    wildcard_subscription_available=True,
)


class InsideDoor(BoundSocket):
    """What a listener's socket hands down, without the socket."""

    __slots__ = ()

    def __init__(self, limits: Limits) -> None:
        self.listener = Listener(limits=_LIMITS)
        self.url = self.address = INSIDE
        self.family = int(socket.AF_UNSPEC)
        self.is_tcp = False
        self.inode = None
        self.connections_count = 0
        self.tls = None
        self.origins = None
        self.lock = Lock(Guard(), None, None, None, "none")
        self.access = Access()
        self.allowance = Allowance(_LIMITS.over(limits))
