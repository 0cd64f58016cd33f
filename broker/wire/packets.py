"""The fifteen Control Packets as frozen structs, their fields in wire order, and the 27 properties as one struct.

What comes by the thousand is not looked at by the collector (gc=False): nothing in it can be part of a cycle.
One set of packets serves every version: a 3.1.1 packet is one whose `properties` are `NO_PROPERTIES` and whose reason
codes say what its return codes mean. What a version cannot express is left out when it is encoded.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct

from broker.reasons import ReasonCode

# Protocol levels, as the byte after the protocol name has them. They order: `version >= MQTT_5`.
MQTT_31: Final = 3
MQTT_311: Final = 4
MQTT_5: Final = 5

CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4
PUBREC: Final = 5
PUBREL: Final = 6
PUBCOMP: Final = 7
SUBSCRIBE: Final = 8
SUBACK: Final = 9
UNSUBSCRIBE: Final = 10
UNSUBACK: Final = 11
PINGREQ: Final = 12
PINGRESP: Final = 13
DISCONNECT: Final = 14
AUTH: Final = 15


class Properties(Struct, frozen=True, repr_omit_defaults=True, gc=False):
    """All properties of MQTT 5.0, 2.2.2.2. None (or an empty tuple) means absent; which packet may carry which is `wire.properties`' table."""

    payload_format_indicator: int | None = None
    message_expiry_interval: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry_interval: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay_interval: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: int | None = None
    subscription_identifier_available: int | None = None
    shared_subscription_available: int | None = None


NO_PROPERTIES: Final = Properties()
"""The one empty set: the decoder returns this very object where there are none, so `is NO_PROPERTIES` is a fair test."""


class WillMessage(Struct, frozen=True, repr_omit_defaults=True):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = NO_PROPERTIES


class Connect(Struct, frozen=True):
    client_id: str
    version: int = MQTT_5
    clean_start: bool = True
    keep_alive_s: int = 0
    will: WillMessage | None = None
    username: str | None = None
    password: bytes | None = None
    properties: Properties = NO_PROPERTIES

    def __repr__(self) -> str:
        # A password appears in no line, log or exception.
        hidden = None if self.password is None else "..."
        return (
            f"Connect(client_id={self.client_id!r}, version={self.version}, clean_start={self.clean_start}, "
            f"keep_alive_s={self.keep_alive_s}, will={self.will!r}, username={self.username!r}, password={hidden}, "
            f"properties={self.properties!r})"
        )


class ConnAck(Struct, frozen=True, repr_omit_defaults=True):
    session_present: bool
    reason: ReasonCode
    properties: Properties = NO_PROPERTIES


class Publish(Struct, frozen=True, repr_omit_defaults=True, gc=False):
    topic: str  # empty only with a Topic Alias
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0  # 0 at QoS 0
    properties: Properties = NO_PROPERTIES


class PubAck(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


class PubRec(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


class PubRel(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


class PubComp(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


class SubscriptionRequest(Struct, frozen=True, repr_omit_defaults=True):
    """A Topic Filter and its Subscription Options (MQTT 5.0, 3.8.3.1). retain_handling: 0 send, 1 send if new, 2 do not send."""

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


class Subscribe(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    subscriptions: tuple[SubscriptionRequest, ...]
    properties: Properties = NO_PROPERTIES


class SubAck(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    reasons: tuple[ReasonCode, ...]
    properties: Properties = NO_PROPERTIES


class Unsubscribe(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    filters: tuple[str, ...]
    properties: Properties = NO_PROPERTIES


class UnsubAck(Struct, frozen=True, repr_omit_defaults=True):
    packet_id: int
    reasons: tuple[ReasonCode, ...] = ()  # 3.1.1 has none
    properties: Properties = NO_PROPERTIES


class PingReq(Struct, frozen=True):
    pass


class PingResp(Struct, frozen=True):
    pass


class Disconnect(Struct, frozen=True, repr_omit_defaults=True):
    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


class Auth(Struct, frozen=True, repr_omit_defaults=True):
    reason: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


Packet: TypeAlias = (
    Connect | ConnAck | Publish | PubAck | PubRec | PubRel | PubComp | Subscribe | SubAck
    | Unsubscribe | UnsubAck | PingReq | PingResp | Disconnect | Auth
)  # fmt: skip
