"""One table of frames and what they mean, for every packet, property and error; `test_codec.py` runs it in several ways.

Bytes are written as a small language: hex digits; `LL` for the Remaining Length (what follows it); `PP` for a property length (up to the
next `|`, which writes nothing); `'text'` for a string field, its two length bytes included; `"text"` for bare characters.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from broker.errors import MalformedPacket, PeerError, ProtocolError
from broker.reasons import ReasonCode
from broker.wire.packets import (
    MQTT_5,
    MQTT_31,
    MQTT_311,
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    Properties,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    WillMessage,
)


class Vector(NamedTuple):
    shows: str
    version: int
    frame: bytes
    packet: Packet | None  # None: it is refused
    error: type[PeerError] | None
    reason: ReasonCode | None
    shortest: bool  # what `encode` gives for the packet


def assemble(text: str) -> bytes:
    out = bytearray()
    remaining_length_at: int | None = None
    property_length_at: int | None = None
    for token in re.findall(r"""'[^']*'|"[^"]*"|\S+""", text):
        if token == "LL":
            remaining_length_at = len(out)
        elif token == "PP":
            property_length_at = len(out)
        elif token == "|":
            assert property_length_at is not None
            out.insert(property_length_at, len(out) - property_length_at)
        elif token[0] == "'":
            encoded = token[1:-1].encode()
            out += len(encoded).to_bytes(2, "big") + encoded
        elif token[0] == '"':
            out += token[1:-1].encode()
        else:
            out += bytes.fromhex(token)
    if remaining_length_at is not None:
        size = len(out) - remaining_length_at
        assert size < 128, "write longer lengths by hand"
        out.insert(remaining_length_at, size)
    return bytes(out)


VECTORS: list[Vector] = []


def good(shows: str, version: int, frame: str, packet: Packet, *, shortest: bool = True) -> None:
    VECTORS.append(Vector(shows, version, assemble(frame), packet, None, None, shortest))


def bad(shows: str, version: int, frame: str, error: type[PeerError], reason: ReasonCode | None = None) -> None:
    VECTORS.append(Vector(shows, version, assemble(frame), None, error, reason or error.reason, False))


def both(shows: str, frame: str, packet: Packet) -> None:
    good(shows, MQTT_311, frame, packet)
    good(shows, MQTT_31, frame, packet)


def bad_in_all(shows: str, frame: str, error: type[PeerError]) -> None:
    """For frames in which nothing tells the versions apart."""
    for version in (MQTT_31, MQTT_311, MQTT_5):
        bad(shows, version, frame, error)


P = Properties
R = ReasonCode
MAL = MalformedPacket
PE = ProtocolError
V5, V311, V31 = MQTT_5, MQTT_311, MQTT_31

# ---- CONNECT ------------------------------------------------------------------------------------------------------------

good("the smallest CONNECT of 5.0", V5, "10 0D 0004 4D515454 05 02 0000 00 0000", Connect(""))
good("the smallest CONNECT of 3.1.1", V311, "10 0C 0004 4D515454 04 02 0000 0000", Connect("", V311))
good("the smallest CONNECT of 3.1", V31, "10 LL 'MQIsdp' 03 02 003C 'c'", Connect("c", V31, keep_alive_s=60))
good("the version is the packet's own, whatever was agreed", V5, "10 LL 'MQTT' 04 00 FFFF 'c'", Connect("c", V311, False, 65_535))
good(
    "a Will with QoS 2 and RETAIN, 3.1.1",
    V311,
    "10 LL 'MQTT' 04 36 000A 'c' 'w/t' 'bye'",
    Connect("c", V311, True, 10, WillMessage("w/t", b"bye", 2, True)),
)
good(
    "user name and password",
    V311,
    "10 LL 'MQTT' 04 C2 000A 'c' 'Ünder' 0002 00FF",
    Connect("c", V311, True, 10, None, "Ünder", b"\x00\xff"),
)
good("a password without a user name is 5.0's", V5, "10 LL 'MQTT' 05 42 0000 00 'c' 'pw'", Connect("c", password=b"pw"))
good("an empty Will payload, no properties", V5, "10 LL 'MQTT' 05 0E 0000 00 'c' 00 'w' 0000", Connect("c", will=WillMessage("w", b"", 1)))
good(
    "every property of CONNECT",
    V5,
    "10 LL 'MQTT' 05 02 0000 PP 11 0000000A 15 'PLAIN' 16 'data' 17 00 19 01 21 000A 22 0005 26 'k' 'v' 26 'k' 'w' 27 00001000 | 'c'",
    Connect(
        "c",
        properties=P(
            session_expiry_interval=10,
            authentication_method="PLAIN",
            authentication_data=b"data",
            request_problem_information=0,
            request_response_information=1,
            receive_maximum=10,
            topic_alias_maximum=5,
            user_properties=(("k", "v"), ("k", "w")),
            maximum_packet_size=4096,
        ),
    ),
)
good(
    "every property of a Will",
    V5,
    "10 LL 'MQTT' 05 06 0000 00 'c' PP 01 01 02 0000003C 03 'text/plain' 08 'r' 09 0001 FF 18 00000005 26 'b' '1' 26 'a' '2' | 'w' 'x'",
    Connect(
        "c",
        will=WillMessage(
            "w",
            b"x",
            properties=P(
                payload_format_indicator=1,
                message_expiry_interval=60,
                content_type="text/plain",
                response_topic="r",
                correlation_data=b"\xff",
                will_delay_interval=5,
                user_properties=(("b", "1"), ("a", "2")),
            ),
        ),
    ),
)
good("3.1 may announce a user name and not send one", V31, "10 LL 'MQIsdp' 03 C2 0000 'c'", Connect("c", V31), shortest=False)
good("3.1 may announce a password and not send one", V31, "10 LL 'MQIsdp' 03 C2 0000 'c' 'u'", Connect("c", V31, username="u"), shortest=False)
good("3.1 ignores bits that are not used", V31, "10 LL 'MQIsdp' 03 2B 0000 'c'", Connect("c", V31), shortest=False)

for level in ("00", "06", "83", "84", "FF"):
    bad(f"protocol level 0x{level}", V5, f"10 LL 'MQTT' {level} 02 0000 00 'c'", PE, R.UNSUPPORTED_PROTOCOL_VERSION)
bad("an unknown protocol name", V5, "10 LL 'MQTX' 05 02 0000 00 'c'", PE, R.UNSUPPORTED_PROTOCOL_VERSION)
bad("3.1's name with 3.1.1's level", V5, "10 LL 'MQIsdp' 04 02 0000 'c'", PE, R.UNSUPPORTED_PROTOCOL_VERSION)
bad("3.1.1's name with 3.1's level", V5, "10 LL 'MQTT' 03 02 0000 'c'", PE, R.UNSUPPORTED_PROTOCOL_VERSION)
bad("nothing after an unknown level is read", V5, "10 LL 'MQTT' 09", PE, R.UNSUPPORTED_PROTOCOL_VERSION)
bad("an empty CONNECT", V5, "10 00", MAL)
bad("the reserved Connect Flag, 5.0", V5, "10 LL 'MQTT' 05 03 0000 00 'c'", MAL)
bad("the reserved Connect Flag, 3.1.1", V311, "10 LL 'MQTT' 04 03 0000 'c'", MAL)
for flags in ("0A", "12", "22"):
    bad(f"Will bits without a Will (0x{flags}), 5.0", V5, f"10 LL 'MQTT' 05 {flags} 0000 00 'c'", MAL)
    bad(f"Will bits without a Will (0x{flags}), 3.1.1", V311, f"10 LL 'MQTT' 04 {flags} 0000 'c'", MAL)
bad("Will QoS 3, 5.0", V5, "10 LL 'MQTT' 05 1E 0000 00 'c' 00 'w' 'x'", MAL)
bad("Will QoS 3, 3.1.1", V311, "10 LL 'MQTT' 04 1E 0000 'c' 'w' 'x'", MAL)
bad("Will QoS 3, 3.1", V31, "10 LL 'MQIsdp' 03 1E 0000 'c' 'w' 'x'", MAL)
bad("a password without a user name, 3.1.1", V311, "10 LL 'MQTT' 04 42 0000 'c' 'pw'", MAL)
bad("a Will Topic with a wildcard", V5, "10 LL 'MQTT' 05 06 0000 00 'c' 00 'w/+' 'x'", MAL)
bad("an empty Will Topic", V311, "10 LL 'MQTT' 04 06 0000 'c' 0000 'x'", MAL)
bad("a Will announced and missing", V5, "10 LL 'MQTT' 05 06 0000 00 'c'", MAL)
bad("a user name announced and missing", V311, "10 LL 'MQTT' 04 82 0000 'c'", MAL)
bad("a password announced and missing", V5, "10 LL 'MQTT' 05 42 0000 00 'c'", MAL)
bad("bytes after the last field of CONNECT", V5, "10 LL 'MQTT' 05 02 0000 00 'c' 00", MAL)
bad("a client identifier that is not UTF-8", V5, "10 LL 'MQTT' 05 02 0000 00 0002 FFFE", MAL)
bad("a surrogate in the user name", V5, "10 LL 'MQTT' 05 82 0000 00 'c' 0003 EDA080", MAL)
bad("U+0000 in the Will Topic", V5, "10 LL 'MQTT' 05 06 0000 00 'c' 00 0003 610062 'x'", MAL)
bad("no property length in a CONNECT of 5.0", V5, "10 LL 'MQTT' 05 02 0000", MAL)
bad("a Will property outside a Will", V5, "10 LL 'MQTT' 05 02 0000 PP 18 00000001 | 'c'", MAL)
bad("a CONNECT property in a Will", V5, "10 LL 'MQTT' 05 06 0000 00 'c' PP 21 000A | 'w' 'x'", MAL)
bad("Receive Maximum 0", V5, "10 LL 'MQTT' 05 02 0000 PP 21 0000 | 'c'", PE)
bad("Maximum Packet Size 0", V5, "10 LL 'MQTT' 05 02 0000 PP 27 00000000 | 'c'", PE)
bad("Request Problem Information 2", V5, "10 LL 'MQTT' 05 02 0000 PP 17 02 | 'c'", PE)
bad("Request Response Information 2", V5, "10 LL 'MQTT' 05 02 0000 PP 19 02 | 'c'", PE)
bad("authentication data without a method", V5, "10 LL 'MQTT' 05 02 0000 PP 16 'x' | 'c'", PE)
bad("Session Expiry Interval twice", V5, "10 LL 'MQTT' 05 02 0000 PP 11 00000001 11 00000001 | 'c'", PE)

# ---- CONNACK ------------------------------------------------------------------------------------------------------------

good("CONNACK of 5.0", V5, "20 03 00 00 00", ConnAck(False, R.SUCCESS))
good("CONNACK with a session", V5, "20 03 01 00 00", ConnAck(True, R.SUCCESS))
good("CONNACK with a session, 3.1.1", V311, "20 02 01 00", ConnAck(True, R.SUCCESS))
good("3.1 has no Session Present", V31, "20 02 00 00", ConnAck(False, R.SUCCESS))
good("3.1 does not look at the flags", V31, "20 02 FF 00", ConnAck(False, R.SUCCESS), shortest=False)
good("a refusal of 5.0", V5, "20 03 00 9F 00", ConnAck(False, R.CONNECTION_RATE_EXCEEDED))
good("return code 1", V311, "20 02 00 01", ConnAck(False, R.UNSUPPORTED_PROTOCOL_VERSION))
good("return code 2", V311, "20 02 00 02", ConnAck(False, R.CLIENT_IDENTIFIER_NOT_VALID))
good("return code 3", V311, "20 02 00 03", ConnAck(False, R.SERVER_UNAVAILABLE))
good("return code 4", V311, "20 02 00 04", ConnAck(False, R.BAD_USER_NAME_OR_PASSWORD))
good("return code 5", V31, "20 02 00 05", ConnAck(False, R.NOT_AUTHORIZED))
good("a 3.1.1 server refuses a 5.0 client", V5, "20 02 00 01", ConnAck(False, R.UNSUPPORTED_PROTOCOL_VERSION), shortest=False)
good(
    "every property of CONNACK",
    V5,
    "20 LL 00 00 PP 11 00000001 12 'id' 13 0014 15 'M' 16 'D' 1A 'r/' 1C 'h:1' 1F 'ok' "
    "21 0001 22 FFFF 24 01 25 00 26 'a' '' 27 0000000A 28 00 29 00 2A 01 |",
    ConnAck(
        False,
        R.SUCCESS,
        P(
            session_expiry_interval=1,
            assigned_client_identifier="id",
            server_keep_alive=20,
            authentication_method="M",
            authentication_data=b"D",
            response_information="r/",
            server_reference="h:1",
            reason_string="ok",
            receive_maximum=1,
            topic_alias_maximum=65_535,
            maximum_qos=1,
            retain_available=0,
            user_properties=(("a", ""),),
            maximum_packet_size=10,
            wildcard_subscription_available=0,
            subscription_identifier_available=0,
            shared_subscription_available=1,
        ),
    ),
)
bad("a reserved flag of CONNACK", V5, "20 03 02 00 00", MAL)
bad("a reserved flag of CONNACK, 3.1.1", V311, "20 02 80 00", MAL)
bad("a reserved return code", V311, "20 02 00 06", MAL)
bad("a CONNACK of 3.1.1 with more", V311, "20 03 00 00 00", MAL)
bad("a CONNACK of 5.0 without property length", V5, "20 02 00 00", MAL)
bad("a reason that CONNACK does not carry", V5, "20 03 00 8E 00", PE)
bad("a reason that nobody knows", V5, "20 03 00 FF 00", PE)
for identifier, name in ((0x24, "Maximum QoS"), (0x25, "Retain Available"), (0x28, "Wildcard"), (0x29, "Subscription Identifier"), (0x2A, "Shared")):
    bad(f"{name} is 2", V5, f"20 LL 00 00 PP {identifier:02X} 02 |", PE)

# ---- PUBLISH ------------------------------------------------------------------------------------------------------------

good("PUBLISH, 5.0", V5, "30 06 0001 61 00 6869", Publish("a", b"hi"))
both("PUBLISH before 5.0", "30 05 0001 61 6869", Publish("a", b"hi"))
good("RETAIN and no payload", V5, "31 LL 'a/b' 00", Publish("a/b", retain=True))
good("QoS 1 has a packet identifier", V5, "32 LL 'a' 0001 00 \"x\"", Publish("a", b"x", 1, packet_id=1))
good("QoS 2 with DUP and RETAIN", V311, "3D LL 'a' FFFF \"x\"", Publish("a", b"x", 2, True, True, 65_535))
good("a topic beyond ASCII, a BOM that stays", V311, "30 LL '\ufeff温度/日本' \"x\"", Publish("\ufeff温度/日本", b"x"))
good("control characters pass", V311, "30 LL 0003 617F01", Publish("a\x7f\x01"))
good("a lone slash and a $ topic are topics", V311, "30 LL '$SYS/ /'", Publish("$SYS/ /"))
good("an empty topic with a Topic Alias", V5, '30 LL 0000 PP 23 0001 | "x"', Publish("", b"x", properties=P(topic_alias=1)))
good(
    "every property of PUBLISH",
    V5,
    "34 LL 'a' 0007 PP 01 00 02 FFFFFFFF 03 'x' 08 'r/t' 09 0000 0B 01 0B FFFFFF7F 0B 01 23 FFFF 26 'k' 'v' 26 'k' 'v' | \"x\"",
    Publish(
        "a",
        b"x",
        2,
        packet_id=7,
        properties=P(
            payload_format_indicator=0,
            message_expiry_interval=0xFFFF_FFFF,
            content_type="x",
            response_topic="r/t",
            correlation_data=b"",
            subscription_identifiers=(1, 268_435_455, 1),
            topic_alias=65_535,
            user_properties=(("k", "v"), ("k", "v")),
        ),
    ),
)
good(
    "properties in another order than ours",
    V5,
    "30 LL 'a' PP 26 'k' 'v' 0B 01 03 'x' 0B 02 |",
    Publish("a", properties=P(content_type="x", subscription_identifiers=(1, 2), user_properties=(("k", "v"),))),
    shortest=False,
)
bad_in_all("QoS 3", "36 LL 'a' 0001 00", MAL)
bad_in_all("DUP at QoS 0", "38 LL 'a' 00", MAL)
bad_in_all("packet identifier 0", "32 LL 'a' 0000 00", PE)
bad_in_all("no room for the packet identifier", "32 LL 'a' 00", MAL)
bad_in_all("no topic at all", "30 00", MAL)
bad_in_all("a topic longer than the packet", "30 03 0002 61", MAL)
bad_in_all("+ in a topic", "30 LL 'a/+' 00", MAL)
bad_in_all("# in a topic", "30 LL 'a/#' 00", MAL)
bad_in_all("+ inside a level of a topic", "30 LL 'a+b' 00", MAL)
bad_in_all("U+0000 in a topic", "30 LL 0003 610062 00", MAL)
bad_in_all("a surrogate in a topic", "30 LL 0003 EDA080 00", MAL)
bad_in_all("an over-long form of a character", "30 LL 0002 C0AF 00", MAL)
bad_in_all("a character cut short", "30 LL 0002 61C3 00", MAL)
bad_in_all("an empty topic without an alias", "30 LL 0000 00", PE)
bad("no property length", V5, "30 LL 'a'", MAL)
bad("Topic Alias 0", V5, "30 LL 'a' PP 23 0000 |", PE, R.TOPIC_ALIAS_INVALID)
bad("Topic Alias twice", V5, "30 LL 'a' PP 23 0001 23 0001 |", PE)
bad("Subscription Identifier 0", V5, "30 LL 'a' PP 0B 00 |", PE)
bad("Payload Format Indicator 2", V5, "30 LL 'a' PP 01 02 |", PE)
bad("a wildcard in a Response Topic", V5, "30 LL 'a' PP 08 'a/#' |", PE)
bad("an empty Response Topic", V5, "30 LL 'a' PP 08 0000 |", PE)
bad("a Will property in PUBLISH", V5, "30 LL 'a' PP 18 00000001 |", MAL)
bad("a property that is not", V5, "30 LL 'a' PP 7F 01 |", MAL)
bad("a property identifier of two bytes", V5, "30 LL 'a' PP 8101 01 |", MAL)
bad("properties longer than the packet", V5, "30 LL 'a' 05 01 01", MAL)
bad("a property longer than the properties", V5, "30 LL 'a' 03 03 0005 \"hello\"", MAL)
bad("a property cut short", V5, "30 LL 'a' PP 02 0000 |", MAL)
bad("an identifier without a value", V5, "30 LL 'a' PP 01 |", MAL)
bad("a property length in two bytes that fits one", V5, "30 LL 'a' 8200 0100", MAL)
bad("an empty property set in two bytes", V5, "30 LL 'a' 8000", MAL)
bad("a property length of five bytes", V5, "30 LL 'a' 8080808001", MAL)
bad("a property length cut short", V5, "30 LL 'a' 80", MAL)
bad("a Subscription Identifier longer than need be", V5, "30 LL 'a' PP 0B 8100 |", MAL)
bad("U+0000 in a User Property", V5, "30 LL 'a' PP 26 'k' 0001 00 |", MAL)
bad("half a User Property", V5, "30 LL 'a' PP 26 'k' |", MAL)

# ---- PUBACK, PUBREC, PUBREL, PUBCOMP --------------------------------------------------------------------------------------

for kind, first, other, refusal in (
    (PubAck, "40", R.NO_MATCHING_SUBSCRIBERS, R.QUOTA_EXCEEDED),
    (PubRec, "50", R.NO_MATCHING_SUBSCRIBERS, R.NOT_AUTHORIZED),
    (PubRel, "62", R.PACKET_IDENTIFIER_NOT_FOUND, R.PACKET_IDENTIFIER_NOT_FOUND),
    (PubComp, "70", R.PACKET_IDENTIFIER_NOT_FOUND, R.PACKET_IDENTIFIER_NOT_FOUND),
):
    word = kind.__name__
    for version in (V31, V311, V5):
        good(f"{word}: the identifier alone means success", version, f"{first} 02 1234", kind(0x1234))
        bad(f"{word}: identifier 0", version, f"{first} 02 0000", PE)
        bad(f"{word}: too short", version, f"{first} 01 01", MAL)
        bad(f"{word}: reserved flags", version, f"{int(first, 16) ^ 1:02X} 02 0001", MAL)
    good(f"{word}: a reason without properties", V5, f"{first} 03 0001 {other:02X}", kind(1, other))
    good(f"{word}: success written out", V5, f"{first} 03 0001 00", kind(1), shortest=False)
    good(f"{word}: success and no properties written out", V5, f"{first} 04 0001 00 00", kind(1), shortest=False)
    good(
        f"{word}: every property",
        V5,
        f"{first} LL 0001 {refusal:02X} PP 1F 'no' 26 'k' 'v' |",
        kind(1, refusal, P(reason_string="no", user_properties=(("k", "v"),))),
    )
    good(f"{word}: a property and success", V5, f"{first} LL 0001 00 PP 1F '' |", kind(1, R.SUCCESS, P(reason_string="")))
    bad(f"{word}: a reason that it does not carry", V5, f"{first} 03 0001 04", PE)
    bad(f"{word}: a property that it does not carry", V5, f"{first} LL 0001 00 PP 01 01 |", MAL)
    bad(f"{word}: bytes after the properties", V5, f"{first} 05 0001 00 00 00", MAL)
    bad(f"{word}: the Reason String twice", V5, f"{first} LL 0001 00 PP 1F '' 1F '' |", PE)
    bad(f"{word}: a reason before 5.0", V311, f"{first} 03 0001 00", MAL)
good("3.1 sets DUP when it repeats PUBREL", V31, "6A 02 0001", PubRel(1), shortest=False)
bad("3.1.1 does not", V311, "6A 02 0001", MAL)
bad("nor 5.0", V5, "6A 02 0001", MAL)

# ---- SUBSCRIBE, SUBACK ----------------------------------------------------------------------------------------------------

good("SUBSCRIBE, 5.0", V5, "82 07 0001 00 0001 61 00", Subscribe(1, (SubscriptionRequest("a"),)))
both("SUBSCRIBE to two", "82 LL 0001 'a/+' 01 '#' 02", Subscribe(1, (SubscriptionRequest("a/+", 1), SubscriptionRequest("#", 2))))
good(
    "all Subscription Options",
    V5,
    "82 LL 0001 00 'a' 2E 'b' 10",
    Subscribe(1, (SubscriptionRequest("a", 2, True, True, 2), SubscriptionRequest("b", 0, retain_handling=1))),
)
good(
    "every property of SUBSCRIBE",
    V5,
    "82 LL 0001 PP 0B 8001 26 'k' 'v' | 'a' 00",
    Subscribe(1, (SubscriptionRequest("a"),), P(subscription_identifiers=(128,), user_properties=(("k", "v"),))),
)
good(
    "the syntax of a filter is for SUBACK to answer",
    V5,
    "82 LL 0001 00 'a#b' 00 '' 00",
    Subscribe(1, (SubscriptionRequest("a#b"), SubscriptionRequest(""))),
)
good("3.1 sets DUP when it repeats SUBSCRIBE", V31, "8A LL 0001 'a' 01", Subscribe(1, (SubscriptionRequest("a", 1),)), shortest=False)
bad_in_all("SUBSCRIBE with reserved flags", "80 LL 0001 00 'a' 00", MAL)
bad_in_all("SUBSCRIBE with identifier 0", "82 LL 0000 00 'a' 00", PE)
bad("SUBSCRIBE without a filter, 5.0", V5, "82 03 0001 00", PE)
bad("SUBSCRIBE without a filter, 3.1.1", V311, "82 02 0001", PE)
bad("QoS 3, 5.0", V5, "82 LL 0001 00 'a' 03", PE)
bad("Retain Handling 3", V5, "82 LL 0001 00 'a' 30", PE)
bad("reserved option bit 6", V5, "82 LL 0001 00 'a' 40", MAL)
bad("reserved option bit 7", V5, "82 LL 0001 00 'a' 80", MAL)
for options in ("03", "04", "08", "10", "80"):
    bad(f"option byte 0x{options}, 3.1.1", V311, f"82 LL 0001 'a' {options}", MAL)
bad("a filter without options", V5, "82 LL 0001 00 'a'", MAL)
bad("a filter that is not UTF-8", V5, "82 LL 0001 00 0001 FF 00", MAL)
bad("U+0000 in a filter", V311, "82 LL 0001 0001 00 00", MAL)
bad("two Subscription Identifiers", V5, "82 LL 0001 PP 0B 01 0B 02 | 'a' 00", PE)
bad("Subscription Identifier 0 in SUBSCRIBE", V5, "82 LL 0001 PP 0B 00 | 'a' 00", PE)
bad("a Topic Alias in SUBSCRIBE", V5, "82 LL 0001 PP 23 0001 | 'a' 00", MAL)

good(
    "SUBACK, every reason",
    V5,
    "90 LL 0001 00 00 01 02 80 83 87 8F 91 97 9E A1 A2",
    SubAck(1, tuple(R(code) for code in (0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2))),
)
both("SUBACK, every code before 5.0", "90 06 0001 00 01 02 80", SubAck(1, (R.SUCCESS, R.GRANTED_QOS_1, R.GRANTED_QOS_2, R.UNSPECIFIED_ERROR)))
good(
    "every property of SUBACK",
    V5,
    "90 LL 0001 PP 1F 'x' 26 'k' 'v' | 00",
    SubAck(1, (R.SUCCESS,), P(reason_string="x", user_properties=(("k", "v"),))),
)
bad("SUBACK with a reserved code", V311, "90 03 0001 87", MAL)
bad("SUBACK with a reason that it does not carry", V5, "90 04 0001 00 11", PE)
bad("SUBACK without a reason", V5, "90 03 0001 00", PE)
bad("SUBACK with reserved flags", V5, "91 04 0001 00 00", MAL)

# ---- UNSUBSCRIBE, UNSUBACK ------------------------------------------------------------------------------------------------

good("UNSUBSCRIBE, 5.0", V5, "A2 LL 0001 00 'a' 'b/#'", Unsubscribe(1, ("a", "b/#")))
both("UNSUBSCRIBE before 5.0", "A2 LL 0001 'a'", Unsubscribe(1, ("a",)))
good("every property of UNSUBSCRIBE", V5, "A2 LL 0001 PP 26 '' '' | 'a'", Unsubscribe(1, ("a",), P(user_properties=(("", ""),))))
good("3.1 sets DUP when it repeats UNSUBSCRIBE", V31, "AA LL 0001 'a'", Unsubscribe(1, ("a",)), shortest=False)
bad_in_all("UNSUBSCRIBE with reserved flags", "A0 LL 0001 00 'a'", MAL)
bad("UNSUBSCRIBE without a filter, 5.0", V5, "A2 03 0001 00", PE)
bad("UNSUBSCRIBE without a filter, 3.1.1", V311, "A2 02 0001", PE)
bad("UNSUBSCRIBE with identifier 0", V5, "A2 LL 0000 00 'a'", PE)
bad("UNSUBSCRIBE with a filter cut short", V5, 'A2 LL 0001 00 0005 "a"', MAL)
bad("a Subscription Identifier in UNSUBSCRIBE", V5, "A2 LL 0001 PP 0B 01 | 'a'", MAL)

good(
    "UNSUBACK, every reason",
    V5,
    "B0 LL 0001 00 00 11 80 83 87 8F 91",
    UnsubAck(1, tuple(R(code) for code in (0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91))),
)
both("UNSUBACK has no codes before 5.0", "B0 02 0001", UnsubAck(1))
good(
    "every property of UNSUBACK",
    V5,
    "B0 LL 0001 PP 1F 'x' 26 'k' 'v' | 00",
    UnsubAck(1, (R.SUCCESS,), P(reason_string="x", user_properties=(("k", "v"),))),
)
bad("UNSUBACK with a code before 5.0", V311, "B0 03 0001 00", MAL)
bad("UNSUBACK without a reason", V5, "B0 03 0001 00", PE)
bad("UNSUBACK with a reason that it does not carry", V5, "B0 04 0001 00 01", PE)

# ---- PINGREQ, PINGRESP, DISCONNECT, AUTH ----------------------------------------------------------------------------------

for version in (V31, V311, V5):
    good("PINGREQ", version, "C0 00", PingReq())
    good("PINGRESP", version, "D0 00", PingResp())
    good("DISCONNECT", version, "E0 00", Disconnect())
bad_in_all("PINGREQ with a body", "C0 01 00", MAL)
bad_in_all("PINGRESP with a body", "D0 01 00", MAL)
bad_in_all("PINGREQ with reserved flags", "C1 00", MAL)
bad_in_all("PINGRESP with reserved flags", "D8 00", MAL)
bad_in_all("DISCONNECT with reserved flags", "E1 00", MAL)
bad_in_all("AUTH with reserved flags", "F1 00", MAL)
bad_in_all("packet type 0", "00 00", MAL)
bad("CONNECT with reserved flags", V5, "11 LL 'MQTT' 05 02 0000 00 'c'", MAL)
bad("CONNACK with reserved flags", V5, "2F 03 00 00 00", MAL)

good("DISCONNECT with the Will", V5, "E0 01 04", Disconnect(R.DISCONNECT_WITH_WILL))
good("DISCONNECT of a server", V5, "E0 01 8E", Disconnect(R.SESSION_TAKEN_OVER))
good("DISCONNECT: success written out", V5, "E0 01 00", Disconnect(), shortest=False)
good("DISCONNECT: success and no properties written out", V5, "E0 02 00 00", Disconnect(), shortest=False)
good("DISCONNECT: a reason and no properties written out", V5, "E0 02 8E 00", Disconnect(R.SESSION_TAKEN_OVER), shortest=False)
good(
    "every property of DISCONNECT",
    V5,
    "E0 LL 00 PP 11 00000000 1C 's' 1F 'bye' 26 'k' 'v' |",
    Disconnect(R.SUCCESS, P(session_expiry_interval=0, server_reference="s", reason_string="bye", user_properties=(("k", "v"),))),
)
bad("DISCONNECT with a body before 5.0", V311, "E0 01 00", MAL)
bad("DISCONNECT with a reason that it does not carry", V5, "E0 01 01", PE)
bad("DISCONNECT with a reason that nobody knows", V5, "E0 01 03", PE)
bad("DISCONNECT with more after its properties", V5, "E0 03 00 00 00", MAL)
bad("DISCONNECT with a property that it does not carry", V5, "E0 LL 00 PP 21 0001 |", MAL)

good("AUTH, empty", V5, "F0 00", Auth())
good("AUTH: success and no properties written out", V5, "F0 02 00 00", Auth(), shortest=False)
good("AUTH has no form of a reason alone", V5, "F0 02 18 00", Auth(R.CONTINUE_AUTHENTICATION))
good(
    "every property of AUTH",
    V5,
    "F0 LL 19 PP 15 'M' 16 0000 1F 'x' 26 'k' 'v' |",
    Auth(R.REAUTHENTICATE, P(authentication_method="M", authentication_data=b"", reason_string="x", user_properties=(("k", "v"),))),
)
bad("AUTH with a reason alone", V5, "F0 01 18", MAL)
bad("AUTH before 5.0", V311, "F0 00", MAL)
bad("AUTH in 3.1", V31, "F0 00", MAL)
bad("AUTH with a reason that it does not carry", V5, "F0 02 80 00", PE)
bad("AUTH with data and no method", V5, "F0 LL 18 PP 16 'x' |", PE)
bad("AUTH with a property that it does not carry", V5, "F0 LL 18 PP 11 00000001 |", MAL)
