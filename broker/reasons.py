"""The 43 reason codes of MQTT 5.0 (2.4), which packet may carry which, and how 3.1.1 says the same."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ReasonCode(IntEnum):
    """What an acknowledgement or a DISCONNECT says. 0x80 and above are failures.

    3.1.1 return codes are mapped onto these (see `from_connack_return_code`). One value may have several names in the
    standard: 0x00 is Success, Normal disconnection and Granted QoS 0.
    """

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

    @property
    def failed(self) -> bool:
        """Is it 0x80 or more?"""
        return self >= 0x80

    def describe(self) -> str:
        """For people: ``not authorized (0x87)``."""
        return f"{self.name.lower().replace('_', ' ').replace('qos', 'QoS')} (0x{self:02X})"


def _codes(*values: int) -> frozenset[int]:
    return frozenset(values)


# Which codes each packet may carry (MQTT 5.0, Table 2-6, and the table of each packet).
CONNACK_CODES: Final = _codes(0x00, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, *range(0x99, 0x9E), 0x9F)  # [MQTT5-3.2.2-8]
PUBACK_CODES: Final = _codes(0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)  # PUBREC too [MQTT5-3.4.2-1, 3.5.2-1]
PUBREL_CODES: Final = _codes(0x00, 0x92)  # PUBCOMP too [MQTT5-3.6.2-1, 3.7.2-1]
SUBACK_CODES: Final = _codes(0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2)  # [MQTT5-3.9.3-2]
UNSUBACK_CODES: Final = _codes(0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91)  # [MQTT5-3.11.3-2]
AUTH_CODES: Final = _codes(0x00, 0x18, 0x19)  # [MQTT5-3.15.2-1]
# [MQTT5-3.14.2-1], by allowed sender. 0x8C (Table 2-6, not Table 3-10) and 0x9B from a client (3.3.4) are accepted.
CLIENT_DISCONNECT_CODES: Final = _codes(0x00, 0x04, *range(0x80, 0x84), 0x90, *range(0x93, 0x9A), 0x9B)
SERVER_DISCONNECT_CODES: Final = _codes(0x00, *range(0x80, 0x84), 0x87, 0x89, *range(0x8B, 0x91), *range(0x93, 0xA3))

# MQTT 3.1.1 CONNACK return codes 0 to 5 (3.2.2.3) as reason codes, and back. The mapping is ours.
_FROM_RETURN_CODE: Final = (0x00, 0x84, 0x85, 0x88, 0x86, 0x87)
_TO_RETURN_CODE: Final = {
    0x00: 0, 0x84: 1, 0x85: 2, 0x86: 4, 0x87: 5, 0x8A: 5, 0x8C: 5,
    0x80: 3, 0x83: 3, 0x88: 3, 0x89: 3, 0x97: 3, 0x9C: 3, 0x9D: 3, 0x9F: 3,
}  # fmt: skip


def from_connack_return_code(code: int) -> ReasonCode | None:
    """The reason code for a 3.1.1 CONNACK return code; None if it is reserved (6 to 255)."""
    return ReasonCode(_FROM_RETURN_CODE[code]) if code < len(_FROM_RETURN_CODE) else None


def to_connack_return_code(reason: int) -> int | None:
    """The 3.1.1 CONNACK return code; None where 3.1.1 has none and the connection closes silently [MQTT311-3.2.2-6]."""
    return _TO_RETURN_CODE.get(reason)
