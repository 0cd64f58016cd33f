"""The nouns of the client's rules: what it was told to be, what is under way, and what it has to say to its caller.

`core.client` moves these about; whoever drives it (the Trio client, a test) holds on to them as tokens and reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from broker.reasons import ReasonCode
from broker.wire.framing import PACKET_BYTES_LARGEST
from broker.wire.packets import MQTT_5, NO_PROPERTIES, ConnAck, Packet, Properties, Publish, SubscriptionRequest, WillMessage

OnPacket: TypeAlias = Callable[[Literal["sent", "received"], Packet, bytes], None]
"""Called with each packet that goes or comes, and its whole frame."""

PACKET_BYTES_MAX: Final = 16_777_216
"""The largest packet a client accepts unless told otherwise, and the broker's own default."""


class ClientOptions(Struct, frozen=True, kw_only=True):
    """What CONNECT says, and the client's own bounds."""

    client_id: str = ""
    version: int = MQTT_5
    clean_start: bool = True
    keep_alive_s: int = 60
    session_expiry_s: int = 0
    will: WillMessage | None = None
    username: str | None = None
    password: bytes | None = None
    receive_maximum: int = 100
    packet_bytes_max: int = PACKET_BYTES_MAX
    topic_alias_maximum: int = 16
    user_properties: tuple[tuple[str, str], ...] = ()
    connect_properties: Properties = NO_PROPERTIES
    """Put over the computed CONNECT properties, field by field."""
    disconnect_properties: Properties = NO_PROPERTIES
    """Of the DISCONNECT that ends it all in good order."""
    response_timeout_s: float = 10.0
    """How long the broker may be silent after a PINGREQ."""
    unsent_bytes_max: int = 1_048_576
    """Answers that wait because the broker does not read; beyond it the connection ends."""


_NEVER: Final = math.inf
_SUCCESS: Final = ReasonCode.SUCCESS

Outcome: TypeAlias = Literal["", "acknowledged", "refused", "unknown", "offline", "dropped", "expired"]


class Outgoing:
    """One publish under way. `publish` never has a packet id or DUP: those belong to one sending of it."""

    __slots__ = (
        "abandoned",
        "count",
        "done",
        "expires_at",
        "left",
        "offline",
        "outcome",
        "owner",
        "packet_id",
        "publish",
        "qos",
        "reason",
        "sequence",
        "size",
        "topic_alias",
    )

    def __init__(self, publish: Publish, sequence: int, offline: str = "wait", topic_alias: int | None = None) -> None:
        self.publish = publish
        self.qos: int = publish.qos
        self.sequence = sequence
        self.offline = offline
        self.topic_alias = topic_alias
        self.expires_at = _NEVER
        self.packet_id = 0
        self.left = False
        """Its PUBLISH may be on the wire: from here on it can no longer be taken back."""
        self.done = False
        self.outcome: Outcome = ""
        self.reason = _SUCCESS
        self.abandoned = False
        """Nobody waits for it any more."""
        self.count = 1
        """It stands for so many messages of QoS 0, which leave together; `publish` is the first of them."""
        self.size = len(publish.payload)
        """Of all of them, in payload bytes."""
        self.owner: Any = None
        """The caller's own object."""


class Delivery:
    """One PUBLISH from the broker, with its full topic. At QoS 1 and 2 it waits for `ClientProtocol.settle`."""

    __slots__ = ("connection", "publish", "reason", "settled")

    def __init__(self, publish: Publish, connection: int) -> None:
        self.publish = publish
        self.connection = connection
        """Number of the connection on which its acknowledgement is owed."""
        self.settled = publish.qos == 0
        self.reason = _SUCCESS


class Exchange:
    """One SUBSCRIBE or UNSUBSCRIBE under way; `requests` is empty for the latter."""

    __slots__ = ("done", "filters", "identifier", "left", "owner", "packet_id", "reasons", "remade", "requests", "sent", "user_properties")

    def __init__(
        self,
        filters: tuple[str, ...],
        requests: tuple[SubscriptionRequest, ...] = (),
        identifier: int | None = None,
        user_properties: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.filters = filters
        self.requests = requests
        self.identifier = identifier
        self.user_properties = user_properties
        self.left: set[str] = set()
        """Filters that an UNSUBSCRIBE has followed with before its SUBACK came (of a SUBSCRIBE)."""
        self.packet_id = 0
        self.reasons: tuple[ReasonCode, ...] = ()
        self.done = False
        self.sent = False
        """The broker may know of it, though the connection was lost before it answered."""
        self.remade = False
        """A subscription made again because the Session was lost."""
        self.owner: Any = None


UNTOLD_COUNT_MAX: Final = 20
"""Messages under way at QoS 1 and 2 to a broker of 3.1.1, which cannot say how many it takes. Mosquitto takes 20 by default (2.0.11): of a QoS 2
message beyond them it completes the handshake and delivers nothing. Its own client, and paho, have no more under way either."""


class Capabilities:
    """What the broker said it can do, and how much; the values that hold where it said nothing (MQTT 5.0, 3.2.2.3)."""

    __slots__ = (
        "identifiers",
        "maximum_qos",
        "packet_bytes_max",
        "receive_maximum",
        "response_information",
        "retain",
        "shared",
        "topic_alias_maximum",
        "wildcards",
    )

    def __init__(self, connack: ConnAck | None, version: int) -> None:
        properties = NO_PROPERTIES if connack is None else connack.properties
        self.receive_maximum: int = _or(properties.receive_maximum, 65_535) if version >= MQTT_5 else UNTOLD_COUNT_MAX
        self.maximum_qos: int = _or(properties.maximum_qos, 2)
        self.packet_bytes_max: int = _or(properties.maximum_packet_size, PACKET_BYTES_LARGEST)
        self.topic_alias_maximum: int = _or(properties.topic_alias_maximum, 0)
        self.retain: bool = properties.retain_available != 0
        self.wildcards: bool = properties.wildcard_subscription_available != 0
        self.shared: bool = properties.shared_subscription_available != 0
        self.identifiers: bool = version >= MQTT_5 and properties.subscription_identifier_available != 0
        self.response_information: str | None = properties.response_information


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


# ---- what the caller is told --------------------------------------------------------------------------------------------


class Connected(Struct, frozen=True):
    """CONNACK 0x00. resumed: the broker has our Session; else it is new, and `Resubscribed` follows when its subscriptions stand."""

    connack: ConnAck
    resumed: bool


class Refused(Struct, frozen=True):
    """CONNACK of 0x80 or more. return_code: as the wire had it, of 3.1.1 or 5.0."""

    reason: ReasonCode
    return_code: int
    explanation: str | None


class ExchangeDone(Struct, frozen=True):
    exchange: Exchange


class Resubscribed(Struct, frozen=True):
    pass


class Reauthenticated(Struct, frozen=True):
    pass


Event: TypeAlias = Delivery | Outgoing | Connected | Refused | ExchangeDone | Resubscribed | Reauthenticated
"""A Delivery: it was received. An Outgoing: it is done. These two are what comes by the thousand, so they are no more than themselves."""
