"""-d and -dd: Mosquitto's words, and no password in either."""

from __future__ import annotations

import pytest

from broker.cli.tracing import Tracer, describe, hexadecimal, mask
from broker.reasons import ReasonCode
from broker.wire import packets
from broker.wire.packets import Properties, SubscriptionRequest

LINES = [
    (packets.Connect("me"), ["CONNECT"]),
    (packets.ConnAck(False, ReasonCode.SUCCESS), ["CONNACK (0)"]),
    (packets.ConnAck(False, ReasonCode.NOT_AUTHORIZED), ["CONNACK (135)"]),
    (packets.Publish("a/b", b"hello", qos=1, retain=True, packet_id=3), ["PUBLISH (d0, q1, r1, m3, 'a/b', ... (5 bytes))"]),
    (packets.PubAck(1, ReasonCode.NO_MATCHING_SUBSCRIBERS), ["PUBACK (Mid: 1, RC:16)"]),
    (packets.PubRel(1), ["PUBREL (Mid: 1, RC:0)"]),
    (
        packets.Subscribe(1, (SubscriptionRequest("a", 1, retain_as_published=True), SubscriptionRequest("b", no_local=True, retain_handling=2))),
        ["SUBSCRIBE (Mid: 1, Topic: a, QoS: 1, Options: 0x08)", "SUBSCRIBE (Mid: 1, Topic: b, QoS: 0, Options: 0x24)"],
    ),
    (packets.SubAck(1, (ReasonCode.GRANTED_QOS_1, ReasonCode.NOT_AUTHORIZED)), ["SUBACK (Mid: 1, RC: 1, 135)"]),
    (packets.Unsubscribe(2, ("a", "b")), ["UNSUBSCRIBE (Mid: 2, Topic: a)", "UNSUBSCRIBE (Mid: 2, Topic: b)"]),
    (packets.UnsubAck(2), ["UNSUBACK (Mid: 2)"]),
    (packets.PingReq(), ["PINGREQ"]),
    (packets.Disconnect(), ["DISCONNECT"]),
    (packets.Disconnect(ReasonCode.SERVER_SHUTTING_DOWN), ["DISCONNECT (139)"]),
    (packets.Auth(ReasonCode.CONTINUE_AUTHENTICATION), ["AUTH (24)"]),
]


@pytest.mark.parametrize(("packet", "lines"), LINES, ids=[lines[0].split()[0] for _, lines in LINES])
def test_a_packet_is_described(packet: packets.Packet, lines: list[str]) -> None:
    assert describe(packet) == lines


def test_the_client_id_is_known_from_connack_on(capsys: pytest.CaptureFixture[str]) -> None:
    trace = Tracer()
    trace("sent", packets.Connect(""), b"")
    trace("received", packets.ConnAck(False, ReasonCode.SUCCESS, Properties(assigned_client_identifier="auto-1")), b"")
    trace("sent", packets.PingReq(), b"\xc0\x00")
    assert capsys.readouterr().err.splitlines() == [
        "Client (null) sending CONNECT",
        "Client auto-1 received CONNACK (0)",
        "Client auto-1 sending PINGREQ",
    ]


def test_bytes_come_in_rows(capsys: pytest.CaptureFixture[str]) -> None:
    Tracer(with_bytes=True)("received", packets.PingResp(), bytes(range(18)))
    assert capsys.readouterr().err.splitlines()[1:] == ["  0000  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f", "  0010  10 11"]


def test_a_long_packet_is_cut() -> None:
    rows = hexadecimal(["00"] * 5000)
    assert len(rows) == 257
    assert rows[-1] == "  ... and 904 bytes more"


def test_a_password_is_masked() -> None:
    shown = mask(packets.Connect("x", username="u", password=b"pass"), b"\x10\x0cabcdpass")
    assert shown == ["10", "0c", "61", "62", "63", "64", "**", "**", "**", "**"]


def test_authentication_data_is_masked() -> None:
    packet = packets.Auth(ReasonCode.CONTINUE_AUTHENTICATION, Properties(authentication_method="m", authentication_data=b"key"))
    assert mask(packet, b"\xf0\x18\x15\x00\x01m\x16\x00\x03key")[-4:] == ["03", "**", "**", "**"]
