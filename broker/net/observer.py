"""What the log says of clients: one line when one comes, one when it goes, one for each that broke the protocol.
Messages that were dropped are added up first (see drops.py); how often all that happens is counted (tally.py).

Never a password; a user name and a Client Identifier are the client's words, so they are shown as quoted literals.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from broker.core.link import AUTHENTICATING, AWAITING_CONNECT
from broker.core.observer import CONNECTION_LOST, Observer
from broker.net.connection import Connection
from broker.net.drops import Drops
from broker.net.inside import INSIDE
from broker.net.seldom import Seldom
from broker.net.tally import Tally
from broker.reasons import ReasonCode
from broker.words import named

if TYPE_CHECKING:
    from broker.core.link import Link

_VERSIONS: Final = {3: "3.1", 4: "3.1.1", 5: "5.0"}

logger = logging.getLogger("broker.clients")


class ClientLog(Observer):
    """connections: one line a connect and disconnect; refusals and violations are always told. A bridge's own client comes and goes with the other
    broker, of which the bridge tells itself."""

    def __init__(self, connections: bool = True) -> None:
        self.connections = connections
        self.drops = Drops()
        self.tally = Tally()
        self._seldom = Seldom(logger)

    def connected(self, link: Link) -> None:
        if link.listener == INSIDE:
            return
        self.tally.connects_count += 1
        if self.connections:
            logger.info("connected %r from %s user=%r version=%s", *_who(link), _VERSIONS.get(link.version, "?"))

    def refused(self, link: Link, reason: ReasonCode, cause: str) -> None:
        self.tally.refuse(reason if link.version else None)
        told = _cause(link, cause)
        if reason == ReasonCode.CONNECTION_RATE_EXCEEDED:  # whoever is too often here would fill the log too
            self._seldom.warn("connect rate", "refused %r from %s user=%r: %s (0x%02X)", *_who(link), told, int(reason))
        elif link.version:
            logger.warning("refused %r from %s user=%r: %s (0x%02X)", *_who(link), told, int(reason))
        elif cause != CONNECTION_LOST:
            logger.warning("no CONNECT from %s: %s", link.peer, told)
        elif self.connections:  # came and went without a word: whoever looks whether the port is open
            logger.info("no CONNECT from %s: %s", link.peer, told)

    def violation(self, link: Link, cause: str) -> None:
        self.tally.violations_count += 1
        if link.phase not in (AWAITING_CONNECT, AUTHENTICATING):  # else `refused` follows, and says the same
            logger.warning("protocol violation by %r from %s: %s", named(link.client_id), link.peer, cause)

    def disconnected(self, link: Link, cause: str, error: bool) -> None:
        if link.listener == INSIDE:
            return
        self.tally.lost_count += error
        if self.connections:
            logger.info("disconnected %r from %s user=%r: %s", *_who(link), _cause(link, cause))

    def held_up(self, link: Link) -> None:
        self._seldom.warn("rate", "%r from %s user=%r sends faster than it may, and is made to wait", *_who(link))

    def not_retained(self, link: Link) -> None:
        text = "%r from %s user=%r asks for messages to be retained, where retain_available = false: passed on, and not retained"
        self._seldom.warn("retain", text, *_who(link))

    def dropped(self, client_id: str, reason: str, count: int) -> None:
        self.drops.note(client_id, reason, count)


def _who(link: Link) -> tuple[str | None, str, str | None]:
    return named(link.client_id), link.peer, named(link.username)


def _cause(link: Link, cause: str) -> str:
    """What the stream said is more than what the core can know."""
    transport = link.transport
    return transport.cause if isinstance(transport, Connection) and transport.cause else cause
