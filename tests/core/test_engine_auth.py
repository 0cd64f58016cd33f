"""Who the client is: asked outside, answered later; the AUTH exchange, and what a client may do meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from broker.core.auth import AuthRequest
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import (
    MQTT_5,
    MQTT_311,
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
from tests.core.harness import Peer, World

CONTINUE, AGAIN = ReasonCode.CONTINUE_AUTHENTICATION, ReasonCode.REAUTHENTICATE


def method(data: bytes | None = None, name: str | None = "SCRAM") -> Properties:
    return Properties(authentication_method=name, authentication_data=data)


def question(peer: Peer) -> AuthRequest:
    asked = peer.link.auth
    assert asked is not None
    assert not asked.done
    return asked


def answer(peer: Peer, username: str | None = None, **how: Any) -> None:
    peer.world.engine.authenticated(peer.link, username, peer.world.now, **how)
    peer.more = peer.world.engine.receive(peer.link, b"", peer.world.now)
    peer.world.settle()


def challenge(peer: Peer, data: bytes) -> None:
    peer.world.engine.challenge(peer.link, data, peer.world.now)
    peer.world.settle()


def asking(**limits: Any) -> World:
    return World(asks_authentication=True, **limits)


def connected_with_method(world: World) -> Peer:
    peer = world.peer()
    peer.send(Connect("a", properties=method(b"first")))
    answer(peer, "ann", data=b"final")
    assert peer.take() == [ConnAck(False, ReasonCode.SUCCESS, peer_properties(peer))]
    return peer


def peer_properties(peer: Peer) -> Properties:
    limits = peer.world.state.limits
    return Properties(
        authentication_method="SCRAM", authentication_data=b"final",
        maximum_packet_size=limits.packet_bytes_max, topic_alias_maximum=limits.topic_alias_maximum,
    )  # fmt: skip


# ---- user name and password ----


def test_a_connect_waits_for_its_answer() -> None:
    world = asking()
    peer = world.peer()
    peer.send(Connect("a", username="ann", password=b"secret"), Subscribe(1, (SubscriptionRequest("t"),)), Publish("t", b"x"))
    asked = question(peer)
    assert (asked.client_id, asked.username, asked.password, asked.method) == ("a", "ann", b"secret", None)
    assert "secret" not in repr(asked)
    assert peer.take() == []
    answer(peer, "ann")
    assert [type(packet).__name__ for packet in peer.take()] == ["ConnAck", "SubAck", "Publish"]
    assert world.state.sessions["a"].username == "ann"
    assert asked.done


def test_a_refusal() -> None:
    world = asking()
    for version, told in ((MQTT_5, ReasonCode.BAD_USER_NAME_OR_PASSWORD), (MQTT_311, ReasonCode.BAD_USER_NAME_OR_PASSWORD)):
        peer = world.peer(version=version)
        peer.send(Connect("a", version, will=WillMessage("w", b"")), Publish("t", b"x"))
        answer(peer, refused=ReasonCode.BAD_USER_NAME_OR_PASSWORD)
        assert peer.ends_with(told)
        assert len(peer.inbox) == 1
        peer.detach()
    world.assert_empty()


def test_who_goes_away_is_not_asked_about_any_more() -> None:
    world = asking()
    peer = world.peer()
    peer.send(Connect("a"))
    asked = question(peer)
    peer.detach()
    assert asked.done
    world.engine.authenticated(peer.link, "ann", world.now)  # a late answer does nothing
    assert peer.link.session is None
    world.assert_empty()


@pytest.mark.parametrize("how", ["refused", "let in", "gone", "late", "another", "challenged"])
def test_nothing_is_kept_of_what_was_asked_about(how: str) -> None:
    """Not while its link closes, which its peer may draw out, nor in the question of whoever asked."""
    world = asking(connect_timeout_s=10)
    peer = world.peer()
    if how == "challenged":
        peer.send(Connect("a", properties=method(b"secret")))
        challenge(peer, b"?")
        asked = question(peer)
        peer.send(Auth(CONTINUE, method(b"secret")))
    else:
        peer.send(Connect("a", username="ann", password=b"secret"))
        asked = question(peer)
    if how == "gone":
        peer.detach()
    elif how == "late":
        world.after(10)
    elif how == "another":
        peer.give(b"\x00\x00" * 40_000)
    else:
        answer(peer, "ann", refused=None if how == "let in" else ReasonCode.NOT_AUTHORIZED)
    assert asked.done
    assert peer.link.connected == (how == "let in")
    assert asked.password is None
    assert asked.data is None
    assert not asked.answers


def test_who_takes_too_long_is_closed() -> None:
    world = asking(connect_timeout_s=10)
    peer = world.peer()
    world.after(5)
    peer.send(Connect("a"))
    asked = question(peer)
    world.after(5)
    assert peer.ends_with(ReasonCode.SERVER_UNAVAILABLE)  # we were: it may come again
    assert asked.done


def test_who_does_not_answer_a_challenge_in_time_is_not_let_in() -> None:
    world = asking(connect_timeout_s=10)
    peer = world.peer()
    peer.send(Connect("a", properties=method(b"first")))
    challenge(peer, b"1")
    peer.send(Auth(CONTINUE, method(b"one")))
    challenge(peer, b"2")
    peer.take()
    world.after(10)
    assert peer.ends_with(ReasonCode.NOT_AUTHORIZED)


def test_what_is_sent_ahead_is_bounded() -> None:
    world = asking(unauthenticated_bytes_max=1000)
    peer = world.peer()
    peer.send(Connect("a"))
    peer.send(*[PingReq()] * 500)
    assert not peer.link.closing
    peer.send(PingReq())
    assert peer.ends_with(ReasonCode.QUOTA_EXCEEDED)


def test_a_session_is_not_touched_before_it_is_known_who_comes() -> None:
    world = asking()
    old = world.peer()
    old.send(Connect("a", properties=Properties(session_expiry_interval=100)))
    answer(old, "ann")
    new = world.peer()
    new.send(Connect("a"))
    assert not old.link.closing
    answer(new, refused=ReasonCode.NOT_AUTHORIZED)
    assert not old.link.closing
    assert "a" in world.state.sessions


def test_shutdown_while_it_is_being_asked() -> None:
    world = asking()
    peer = world.peer()
    peer.send(Connect("a"))
    asked = question(peer)
    world.engine.shutdown(world.now)
    world.settle()
    assert peer.ends_with(ReasonCode.SERVER_UNAVAILABLE)
    assert asked.done


# ---- the AUTH exchange ----


def test_challenges_and_answers() -> None:
    world = asking()
    peer = world.peer()
    peer.send(Connect("a", properties=method(b"first")))
    asked = question(peer)
    assert (asked.method, asked.data) == ("SCRAM", b"first")
    for number in (b"1", b"2"):
        challenge(peer, b"challenge " + number)
        assert peer.take() == [Auth(CONTINUE, method(b"challenge " + number))]  # [MQTT5-4.12.0-2]
        peer.send(Auth(CONTINUE, method(b"answer " + number)))  # [MQTT5-4.12.0-3]
        assert asked.answers.popleft() == b"answer " + number
    answer(peer, "ann", data=b"final")
    assert peer.take() == [ConnAck(False, ReasonCode.SUCCESS, peer_properties(peer))]  # [MQTT5-4.12.0-5]


def test_failure_of_the_exchange() -> None:
    peer = asking().peer()
    peer.send(Connect("a", properties=method()))
    answer(peer, refused=ReasonCode.NOT_AUTHORIZED)
    assert peer.ends_with(ReasonCode.NOT_AUTHORIZED)  # [MQTT5-4.12.0-4]
    challenge(peer, b"late")
    assert len(peer.inbox) == 1


def test_only_auth_and_disconnect_before_connack() -> None:
    world = asking()
    for packet in (PingReq(), Publish("t"), Connect("a", properties=method())):
        peer = world.peer()
        peer.send(Connect("a", properties=method()), packet)
        assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)  # [MQTT5-3.1.2-30]
        assert peer.link.auth is None or peer.link.auth.done
    peer = world.peer()
    peer.send(Connect("a", properties=method()))
    asked = question(peer)
    peer.send(Disconnect())
    assert peer.link.closing
    assert asked.done
    assert peer.take() == []


def test_auth_that_may_not_be() -> None:
    world = asking()
    for packet in (
        Auth(CONTINUE, method(b"x", "OTHER")),  # [MQTT5-4.12.0-5]
        Auth(ReasonCode.SUCCESS, method()),
        Auth(AGAIN, method()),
    ):
        peer = world.peer()
        peer.send(Connect("a", properties=method()))
        challenge(peer, b"?")
        peer.pop(Auth)
        peer.send(packet)
        assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)
    peer = world.peer()
    peer.send(Connect("a", properties=method()), Auth(CONTINUE, method(b"1")), Auth(CONTINUE, method(b"2")))  # only one answer at a time is kept
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)
    peer = world.peer()
    peer.send(Connect("a", properties=method()))
    peer.give(b"\xf0\x00")
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)


def test_without_a_method_there_is_no_auth() -> None:
    peer = World().client("a")
    peer.send(Auth(AGAIN, method()))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)  # [MQTT5-4.12.0-7]
    old = World().client("a", MQTT_311)
    old.give(encode(Auth(AGAIN, method()), MQTT_5))
    assert old.link.closing
    assert old.take() == []
    plain = World().client("a")
    challenge(plain, b"?")
    assert plain.take() == []


def test_again_while_connected() -> None:
    world = asking()
    peer = connected_with_method(world)
    peer.send(Auth(AGAIN, method(b"again")), PingReq())  # other traffic goes on
    assert peer.take() == [PingResp()]
    asked = question(peer)
    assert (asked.reauthentication, asked.data, asked.username) == (True, b"again", "ann")
    challenge(peer, b"?")
    peer.send(Auth(CONTINUE, method(b"!")))
    assert asked.answers.popleft() == b"!"
    answer(peer, "ann", data=b"done")
    assert peer.take() == [Auth(CONTINUE, method(b"?")), Auth(ReasonCode.SUCCESS, method(b"done"))]
    peer.send(Auth(AGAIN, method()))
    assert question(peer) is not asked


def test_again_fails() -> None:
    world = asking()
    peer = connected_with_method(world)
    peer.send(Auth(AGAIN, method()))
    answer(peer, refused=ReasonCode.NOT_AUTHORIZED)
    assert peer.ends_with(ReasonCode.NOT_AUTHORIZED)  # [MQTT5-4.12.1-2]


def test_again_as_somebody_else() -> None:
    """The session and what it may do are the first one's."""
    peer = connected_with_method(asking())
    peer.send(Auth(AGAIN, method()))
    answer(peer, "ben", data=b"done")
    assert peer.ends_with(ReasonCode.NOT_AUTHORIZED)


def test_again_twice_at_once_or_unasked() -> None:
    peer = connected_with_method(asking())
    peer.send(Auth(AGAIN, method()), Auth(AGAIN, method()))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)
    peer = connected_with_method(asking())
    peer.send(Auth(CONTINUE, method()))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)


def test_an_answer_to_nothing() -> None:
    """It would be given out for the answer to whatever is asked later."""
    world = asking()
    peer = world.peer()
    peer.send(Connect("a", properties=method(b"first")), Auth(CONTINUE, method(b"second")))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)
    peer = world.peer()
    peer.send(Connect("a", properties=method(b"first")))
    challenge(peer, b"?")
    peer.take()
    peer.send(Auth(CONTINUE, method(b"second")))
    assert question(peer).answers.popleft() == b"second"
    peer.send(Auth(CONTINUE, method(b"third")))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)
    peer = connected_with_method(world)
    peer.send(Auth(AGAIN, method()), Auth(CONTINUE, method(b"second")))
    assert peer.ends_with(ReasonCode.PROTOCOL_ERROR)


def test_the_end_of_the_connection_ends_a_second_authentication() -> None:
    peer = connected_with_method(asking())
    peer.send(Auth(AGAIN, method()))
    asked = question(peer)
    peer.detach()
    assert asked.done
    peer.world.assert_empty()
