"""Every exception that we raise on purpose.

Two families. `PeerError` is the fault of whoever is at the other end of a Network Connection: it carries the reason
code with which that connection ends, and never leaves the core. `BrokerError` is what a program that imports us, or
a person at a terminal, gets to see: its `str()` is one line that says what to do, and it never holds a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.reasons import ReasonCode

# ---- the peer's fault ---------------------------------------------------------------------------------------------


class PeerError(Exception):
    """The peer broke the protocol; the Network Connection ends with `reason`. `str()` is the cause, for a log line."""

    reason: ReasonCode = ReasonCode.UNSPECIFIED_ERROR

    def __init__(self, cause: str, reason: ReasonCode | None = None) -> None:
        super().__init__(cause)
        if reason is not None:
            self.reason = reason


class MalformedPacket(PeerError):
    """Bytes that cannot be parsed as the standard says (MQTT 5.0, 4.13)."""

    reason = ReasonCode.MALFORMED_PACKET


class ProtocolError(PeerError):
    """A well-formed packet that may not be sent, or not now (MQTT 5.0, 4.13)."""

    reason = ReasonCode.PROTOCOL_ERROR


class PacketTooLarge(PeerError):
    """The fixed header announces more than this end accepts; raised before the rest is read (MQTT 5.0, 3.2.2.3.6)."""

    reason = ReasonCode.PACKET_TOO_LARGE


class IncompletePacket(PeerError):
    """The stream ended inside a packet."""

    reason = ReasonCode.MALFORMED_PACKET


SHOWN_LENGTH_MAX: Final = 100


def shown(text: str) -> str:
    """What somebody gave us, quoted, and cut where a line could not hold it: a topic may have 65,535 bytes."""
    return repr(text) if len(text) <= SHOWN_LENGTH_MAX else f"{text[:SHOWN_LENGTH_MAX]!r}..."


# ---- ours, for the people who use us ------------------------------------------------------------------------------


class BrokerError(Exception):
    """Root of everything raised on purpose towards a user of this package."""


class ConfigError(BrokerError, ValueError):
    """One or more mistakes in a configuration.

    problems: (key path such as ``listeners[1].port``, what was expected), every one and not only the first. source: the file they
    are in, or "config".
    """

    def __init__(self, problems: Sequence[tuple[str, str]], source: str = "config") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("; ".join(f"{source}: {key}: {expected}" if key else f"{source}: {expected}" for key, expected in self.problems))


class ListenError(BrokerError, OSError):
    """A listener could not be opened: address in use, no permission, no such interface.

    address: as in `Broker.urls`, or host:port. errno: the system's number for it (`errno.EADDRINUSE`), or None where it is no fault of the system's.
    """

    def __init__(self, address: str, cause: str, errno: int | None = None) -> None:
        self.address = address
        Exception.__init__(self, f"cannot listen on {address}: {cause}")
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class StoreError(BrokerError):
    """The store at `path` cannot be opened, read or written: another broker's, no folder, no room, not a store of ours.

    damaged: it is ours, and cannot be read as such.
    """

    def __init__(self, path: str, cause: str, *, damaged: bool = False) -> None:
        self.path = path
        self.damaged = damaged
        super().__init__(f"store {path}: {cause}")


class InvalidTopic(BrokerError, ValueError):
    """A Topic Name or Topic Filter that the standard forbids (MQTT 5.0, 4.7); nothing was sent."""


class ConnectError(BrokerError):
    """The broker at `address` (a URL without user and password) was not reached: refused, not found, timed out, TLS failed."""

    def __init__(self, address: str, cause: str) -> None:
        self.address = address
        super().__init__(f"{address}: {cause}")


class ConnectRefused(ConnectError):
    """The broker answered CONNECT with a reason code of 0x80 or more.

    reason: the same in either version. return_code: as the wire had it: 1 to 5 in 3.1.1, the reason code itself in 5.0.
    """

    def __init__(self, address: str, reason: ReasonCode, explanation: str | None = None, *, return_code: int | None = None) -> None:
        self.reason = reason
        self.return_code = int(reason) if return_code is None else return_code
        super().__init__(address, f"connection refused: {reason.describe()}" + (f" ({explanation})" if explanation else ""))


class ConnectionLost(BrokerError):
    """The connection is gone and the Reconnect policy will not bring it back.

    reason: of the broker's DISCONNECT, or None when there was none.
    """

    def __init__(self, cause: str, reason: ReasonCode | None = None) -> None:
        self.reason = reason
        super().__init__(cause)


class PublishRefused(BrokerError):
    """PUBACK or PUBREC of 0x80 or more (`reason`) for a message to `topic`, or one too large for the broker."""

    def __init__(self, topic: str, reason: ReasonCode) -> None:
        self.topic = topic
        self.reason = reason
        super().__init__(f"publish to {shown(topic)} refused: {reason.describe()}")


class DeliveryUnknown(BrokerError):
    """QoS 2: the broker lost the Session between our PUBLISH and its PUBREC. Resending might double; you decide."""


class Offline(BrokerError):
    """publish(offline="raise") while there is no connection."""


class MessageExpired(BrokerError):
    """The message_expiry_s of a publish ended before it could be sent: it was not sent, and nobody got it."""


class SubscribeRefused(BrokerError):
    """SUBACK of 0x80 or more (`reason`) for one `filter`."""

    def __init__(self, filter: str, reason: ReasonCode) -> None:
        self.filter = filter
        self.reason = reason
        super().__init__(f"subscription to {shown(filter)} refused: {reason.describe()}")


class SubscriptionExists(BrokerError):
    """This client already has that Topic Filter: use `Subscription.clone()`."""


class NotSupported(BrokerError):
    """It needs MQTT 5.0, or the broker said that it does not have it."""
