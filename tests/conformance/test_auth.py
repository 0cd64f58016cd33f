"""AUTH and enhanced authentication (MQTT 5.0, 3.15 and 4.12): the broker's side, with a method of two rounds."""

from __future__ import annotations

from typing import Any

import pytest

from broker.net.authentication import ConnectRequest
from broker.reasons import ReasonCode
from broker.wire.packets import (
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    Properties,
    Publish,
    Subscribe,
    SubscriptionRequest,
    WillMessage,
)
from tests.conformance.harness import V311, Peer, Scene
from tests.conformance.wirebytes import frame, properties, string

CONTINUE = ReasonCode(0x18)
AGAIN = ReasonCode(0x19)


async def authenticate(request: ConnectRequest) -> str | None:
    """Method "two": "hello", then the answers "1" and "2" to two challenges. Plain clients come in by their name."""
    if request.auth_method is None:
        return request.username
    if request.auth_method != "two" or request.auth_data != b"hello":
        return None
    for question, answer in ((b"one?", b"1"), (b"two?", b"2")):
        if await request.challenge(question) != answer:
            return None
    request.final_data = b"welcome"
    return "user"


def auth(reason: ReasonCode, data: bytes | None = None, method: str | None = "two", **more: Any) -> Auth:
    return Auth(reason, Properties(authentication_method=method, authentication_data=data, **more))


async def begin(scene: Scene, client_id: str = "a", **options: Any) -> Peer:
    """A peer that has been asked the first question."""
    peer = await scene.peer()
    section = Properties(authentication_method="two", authentication_data=b"hello", **options)
    await peer.send(Connect(client_id, will=WillMessage("will", b"gone"), properties=section))
    await peer.expect(auth(CONTINUE, b"one?"))
    return peer


async def admitted(scene: Scene, client_id: str = "a", **options: Any) -> Peer:
    peer = await begin(scene, client_id, **options)
    await peer.send(auth(CONTINUE, b"1"))
    await peer.expect(auth(CONTINUE, b"two?"))
    await peer.send(auth(CONTINUE, b"2"))
    peer.connack = await peer.take(ConnAck)
    assert peer.connack.reason == ReasonCode.SUCCESS
    return peer


@pytest.mark.statement("MQTT5-4.12.0-2", "MQTT5-4.12.0-3", "MQTT5-4.12.0-5", "MQTT5-3.15.1-1", "MQTT5-3.15.2-1")
async def test_rounds_then_connack_all_with_the_method() -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await admitted(scene)
        assert [frame[0] for frame in peer.frames] == [0xF0, 0xF0, 0x20]
        assert [frame[2] for frame in peer.frames[:2]] == [0x18, 0x18]
        assert peer.connack is not None
        assert peer.connack.properties.authentication_method == "two"
        assert peer.connack.properties.authentication_data == b"welcome"
        await peer.expect_open()


@pytest.mark.statement("MQTT5-4.12.0-5")
async def test_connack_has_the_method_though_there_is_no_data() -> None:
    async def at_once(request: ConnectRequest) -> str | None:
        return "user"

    async with Scene(authenticate=at_once) as scene:
        peer = await scene.connect("a", authentication_method="two")
        assert peer.connack is not None
        assert peer.connack.properties.authentication_method == "two"
        assert peer.connack.properties.authentication_data is None


@pytest.mark.statement("MQTT5-4.12.0-1", "MQTT5-4.13.2-1")
@pytest.mark.parametrize("hook", [None, authenticate], ids=["no hook", "a hook that does not know it"])
async def test_unknown_method_is_refused(hook: Any) -> None:
    async with Scene(authenticate=hook) as scene:
        peer = await scene.peer()
        await peer.send(Connect("a", properties=Properties(authentication_method="NOPE")))
        await peer.expect_closed(0x8C, 0x87)


@pytest.mark.statement("MQTT5-4.12.0-4", "MQTT5-4.13.2-1")
@pytest.mark.parametrize("answers", [(b"wrong",), (b"1", b"wrong")])
async def test_rejected_at_any_step(answers: tuple[bytes, ...]) -> None:
    """And the Will of a client that never came in is nobody's."""
    async with Scene(authenticate=authenticate) as scene:
        watcher = await scene.connect("watcher", username="w")
        await watcher.subscribe("will")
        peer = await begin(scene)
        for number, answer in enumerate(answers):
            if number:
                await peer.expect(auth(CONTINUE, b"two?"))
            await peer.send(auth(CONTINUE, answer))
        await peer.expect_closed(0x86, 0x87, 0x8C)
        await watcher.expect_nothing()


@pytest.mark.statement("MQTT5-4.12.0-3", "MQTT5-3.15.2-1", "MQTT5-4.13.1-1")
@pytest.mark.parametrize("code", [0x00, 0x19, 0x17, 0x80, 0x87, 0xFF], ids=hex)
async def test_other_codes_than_0x18_before_connack_close(code: int) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await begin(scene)
        await peer.send(frame(0xF0, bytes((code,)), properties(b"\x15" + string("two"), b"\x16" + string("1"))))
        await peer.expect_closed()


@pytest.mark.statement("MQTT5-3.15.1-1", "MQTT5-4.13.1-1")
@pytest.mark.parametrize("flags", range(1, 16))
@pytest.mark.parametrize("before", [True, False], ids=["before CONNACK", "after CONNACK"])
async def test_other_flags_close(flags: int, before: bool) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await (begin(scene) if before else admitted(scene))
        await peer.send(frame(0xF0 | flags, b"\x18", properties(b"\x15" + string("two"), b"\x16" + string("1"))))
        await peer.expect_closed(0x81)


@pytest.mark.statement("MQTT5-4.12.0-5", "MQTT5-4.13.1-1")
@pytest.mark.parametrize("method", ["other", "Two", "", None])
async def test_another_method_before_connack_closes(method: str | None) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await begin(scene)
        await peer.send(auth(CONTINUE, b"1", method))
        await peer.expect_closed(0x82, 0x8C)


@pytest.mark.statement("MQTT5-4.12.0-5")
async def test_a_short_auth_has_no_method() -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await begin(scene)
        await peer.send(b"\xf0\x00")
        await peer.expect_closed(0x82)


@pytest.mark.parametrize("packet", [PingReq(), Publish("t"), Subscribe(1, (SubscriptionRequest("t"),))], ids=lambda packet: type(packet).__name__)
async def test_nothing_but_auth_and_disconnect_before_connack(packet: Any) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await begin(scene)
        await peer.send(packet)
        await peer.expect_closed(0x82)


async def test_disconnect_before_connack_ends_it_in_silence() -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await begin(scene)
        await peer.send(Disconnect())
        await peer.expect_end()


@pytest.mark.statement("MQTT5-4.12.0-6")
@pytest.mark.parametrize("version", [5, V311])
async def test_without_a_method_no_auth_and_no_method(version: int) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await scene.connect("a", version, username="user")
        assert peer.connack is not None
        assert peer.connack.properties.authentication_method is None
        assert peer.connack.properties.authentication_data is None
        await peer.expect_nothing()
        assert [frame[0] for frame in peer.frames] == [0x20]
        refused = await scene.peer(version)
        assert (await refused.connect("b")).reason == ReasonCode.BAD_USER_NAME_OR_PASSWORD
        await refused.expect_end()


@pytest.mark.statement("MQTT5-4.12.0-7", "MQTT5-4.13.1-1")
@pytest.mark.parametrize("packet", [auth(CONTINUE, b"1"), auth(AGAIN, b"hello"), auth(AGAIN, method=None), b"\xf0\x00"])
async def test_auth_without_a_method_in_connect_closes(packet: Any) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await scene.connect("a", username="user")
        await peer.send(packet)
        await peer.expect_closed(0x82)


# ---- re-authentication -------------------------------------------------------------------------------------------------


@pytest.mark.statement("MQTT5-4.12.1-1", "MQTT5-4.12.0-5", "MQTT5-3.15.2-1")
async def test_reauthentication_while_everything_else_goes_on() -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await admitted(scene)
        for _ in range(2):
            await peer.send(auth(AGAIN, b"hello"))
            await peer.expect(auth(CONTINUE, b"one?"))
            await peer.subscribe("t")
            await peer.publish("t", b"x")
            await peer.expect(Publish("t", b"x"))
            await peer.send(auth(CONTINUE, b"1"))
            await peer.expect(auth(CONTINUE, b"two?"))
            await peer.send(PingReq(), auth(CONTINUE, b"2"))
            await peer.expect(PingResp(), auth(ReasonCode.SUCCESS, b"welcome"))
        await peer.expect_open()


@pytest.mark.statement("MQTT5-4.12.1-1", "MQTT5-3.15.2-1", "MQTT5-4.13.1-1")
@pytest.mark.parametrize(
    "packet", [auth(AGAIN, b"hello", "other"), auth(AGAIN, b"hello", None), auth(ReasonCode.SUCCESS), auth(CONTINUE, b"1"), b"\xf0\x00"]
)
async def test_reauthentication_begins_with_0x19_and_the_same_method(packet: Any) -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await admitted(scene)
        await peer.send(packet)
        await peer.expect_closed(0x82, 0x8C)


@pytest.mark.statement("MQTT5-4.12.1-2", "MQTT5-4.13.2-1")
@pytest.mark.parametrize("answers", [(), (b"wrong",), (b"1", b"wrong")])
async def test_failed_reauthentication_closes(answers: tuple[bytes, ...]) -> None:
    """As any error does, so the Will goes out."""
    async with Scene(authenticate=authenticate) as scene:
        watcher = await scene.connect("watcher", username="w")
        await watcher.subscribe("will")
        peer = await admitted(scene)
        await peer.send(auth(AGAIN, b"hello" if answers else b"nonsense"))
        for number, answer in enumerate(answers):
            await peer.expect(auth(CONTINUE, b"two?" if number else b"one?"))
            await peer.send(auth(CONTINUE, answer))
        await peer.expect_closed(0x87, 0x82, 0x8C)
        await watcher.expect(Publish("will", b"gone"))


async def test_a_second_reauthentication_during_one_closes() -> None:
    async with Scene(authenticate=authenticate) as scene:
        peer = await admitted(scene)
        await peer.send(auth(AGAIN, b"hello"))
        await peer.expect(auth(CONTINUE, b"one?"))
        await peer.send(auth(AGAIN, b"hello"))
        await peer.expect_closed(0x82)


@pytest.mark.statement("MQTT5-3.15.2-2", "MQTT5-3.15.2-3")
async def test_auth_fits_the_clients_maximum_packet_size() -> None:
    """It has neither Reason String nor User Properties. A challenge that does not fit cannot be put: the client is not admitted."""

    async def long_question(request: ConnectRequest) -> str | None:
        await request.challenge(b"?" * 100)
        return "user"

    async with Scene(authenticate=authenticate) as scene:
        peer = await admitted(scene, maximum_packet_size=60)
        await peer.send(auth(AGAIN, b"hello"))
        await peer.expect(auth(CONTINUE, b"one?"))
        assert all(len(frame) <= 60 for frame in peer.frames)
    async with Scene(authenticate=long_question) as scene:
        peer = await scene.peer()
        await peer.send(Connect("a", properties=Properties(authentication_method="long", maximum_packet_size=60)))
        await peer.expect_closed()
        assert all(len(frame) <= 60 for frame in peer.frames)


@pytest.mark.statement("MQTT5-3.15.2-2", "MQTT5-3.15.2-3")
async def test_the_last_auth_fits_too() -> None:
    async def talkative(request: ConnectRequest) -> str | None:
        request.final_data = b"!" * 100 if request.reauthentication else None
        return "user"

    async with Scene(authenticate=talkative) as scene:
        peer = await scene.peer()
        await peer.send(Connect("a", properties=Properties(authentication_method="long", maximum_packet_size=60)))
        peer.connack = await peer.take(ConnAck)
        await peer.send(auth(AGAIN, None, "long"))
        await peer.expect_closed()
        assert all(len(frame) <= 60 for frame in peer.frames)
