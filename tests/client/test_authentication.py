"""`connect(auth=...)`: SCRAM and tokens from our client, against our broker, against a broker that lies, and anew while connected."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
import scramp  # type: ignore[import-untyped]
import trio
from trio.testing import MockClock

from broker import Config, ConnectError, ConnectionLost, ConnectRefused, NotSupported, ScramSHA256, Token, connect, open_broker
from broker.auth.hashes import hash_password
from broker.auth.tokens import Jwt
from broker.reasons import ReasonCode
from broker.wire.packets import Auth, ConnAck, Connect, Properties
from tests.client.scripted import ScriptedBroker

SECRET = "a shared secret of at least thirty-two bytes"
METHOD = "SCRAM-SHA-256"
ANN = ScramSHA256("ann", "geheim")


def token(lasts_s: float = 60, **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": int(time.time() + lasts_s)} | claims, SECRET, "HS256")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "users").write_text(f"ann:{hash_password(b'geheim', 'scram-sha-256', 4096).text}\n")
    return Config(listeners=(), jwt=Jwt(key_file=str(tmp_path / "secret"), leeway_s=0), password_file=str(tmp_path / "users"), sys_interval_s=0)


def test_what_is_shown_of_them() -> None:
    assert repr(ANN) == "ScramSHA256('ann', ...)"
    assert repr(Token("secret")) == "Token(..., 'JWT')"
    with pytest.raises(ValueError, match="forbids"):
        ScramSHA256("ann", "a\x07b")


async def test_scram_and_again(config: Config) -> None:
    async with open_broker(config) as hub, connect(hub, client_id="c", auth=ANN) as client:
        assert [one.username for one in hub.clients()] == ["ann"]
        await client.reauthenticate()
        async with trio.open_nursery() as nursery:  # one after another
            for _ in range(3):
                nursery.start_soon(client.reauthenticate)
        await client.publish("x", qos=1)


async def test_a_wrong_password_is_refused(config: Config) -> None:
    async with open_broker(config) as hub:
        with pytest.raises(ConnectRefused) as caught:
            async with connect(hub, auth=ScramSHA256("ann", "waffle")):
                pytest.fail("entered")
        assert caught.value.reason == ReasonCode.NOT_AUTHORIZED
        assert "waffle" not in str(caught.value)


async def test_a_token_and_a_newer_one(config: Config, autojump_clock: MockClock) -> None:
    async with open_broker(config) as hub, connect(hub, client_id="c", auth=Token(token(60)), keep_alive_s=0) as client:
        await trio.sleep(30)
        await client.reauthenticate(Token(token(1000)))
        await trio.sleep(500)
        assert client.connected
        with pytest.raises(ValueError, match="cannot go on with"):
            await client.reauthenticate(ANN)


async def test_after_the_end_of_a_token_the_client_comes_again_with_the_newest(config: Config, autojump_clock: MockClock) -> None:
    lasting = iter((60, 1000))
    async with open_broker(config) as hub, connect(hub, client_id="c", auth=Token(lambda: token(next(lasting))), keep_alive_s=0) as client:
        news = client.connections()
        assert await anext(news) == "lost"
        assert await anext(news) == "connected"
        await client.publish("x", qos=1)


async def test_a_password_too_may_be_what_is_newest(config: Config, autojump_clock: MockClock) -> None:
    lasting = iter((60, 1000))
    async with open_broker(config) as hub, connect(hub, username="ann", password=lambda: token(next(lasting)), keep_alive_s=0) as client:
        news = client.connections()
        assert await anext(news) == "lost"
        assert await anext(news) == "connected"


async def test_a_newer_token_that_is_wrong_ends_it(config: Config) -> None:
    async with open_broker(config) as hub:
        with pytest.raises(ConnectionLost) as caught:
            async with connect(hub, auth=Token(token())) as client:
                await client.reauthenticate(Token(token(sub="ben")))
        assert caught.value.reason == ReasonCode.NOT_AUTHORIZED


async def test_what_cannot_be(config: Config) -> None:
    async with open_broker(config) as hub:
        with pytest.raises(NotSupported, match=r"MQTT 5\.0"):
            connect(hub, version="3.1.1", auth=ANN)
        with pytest.raises(ValueError, match="leave them out"):
            connect(hub, auth=ANN, connect_properties=Properties(authentication_method="x"))
    async with open_broker() as hub, connect(hub) as client:
        with pytest.raises(NotSupported, match="auth="):
            await client.reauthenticate()


# ---- brokers by hand -----------------------------------------------------------------------------------------------------------------


def words(data: bytes | None) -> Properties:
    return Properties(authentication_method=METHOD, authentication_data=data)


@asynccontextmanager
async def a_broker(script: Any) -> AsyncIterator[ScriptedBroker]:
    scripted = ScriptedBroker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(script, scripted)
        yield scripted
        nursery.cancel_scope.cancel()


async def test_an_independent_server_lets_us_in() -> None:
    mechanism = scramp.ScramMechanism(METHOD)
    salt, stored_key, server_key, iterations = mechanism.make_auth_info("geheim", iteration_count=4096)

    async def script(scripted: ScriptedBroker) -> None:
        peer = await scripted.next()
        server = mechanism.make_server(lambda user: (salt, stored_key, server_key, iterations))
        said = await peer.expect(Connect)
        assert said.properties.authentication_method == METHOD
        server.set_client_first((said.properties.authentication_data or b"").decode())
        await peer.send(Auth(ReasonCode.CONTINUE_AUTHENTICATION, words(server.get_server_first().encode())))
        answer = await peer.expect(Auth)
        server.set_client_final((answer.properties.authentication_data or b"").decode())
        await peer.send(ConnAck(False, ReasonCode.SUCCESS, words(server.get_server_final().encode())))
        await trio.sleep_forever()

    # Its goodbye is not waited for: nobody there answers it.
    async with a_broker(script) as scripted, connect(scripted, client_id="c", auth=ANN, close_grace_s=0) as client:
        assert client.connected


@pytest.mark.parametrize(
    ("packets", "cause"),
    [
        ([ConnAck(False, ReasonCode.SUCCESS, words(None))], "has not shown"),
        ([ConnAck(False, ReasonCode.SUCCESS, words(b"v=AAAA"))], "has not shown"),
        ([Auth(ReasonCode.CONTINUE_AUTHENTICATION, words(b"r=x,s=AAAA,i=1"))], "nonce does not go on"),
        ([Auth(ReasonCode.CONTINUE_AUTHENTICATION, words(None))], "needs a nonce"),
        ([Auth(ReasonCode.CONTINUE_AUTHENTICATION, Properties(authentication_method="OTHER"))], "another Authentication Method"),
        ([Auth(ReasonCode.CONTINUE_AUTHENTICATION, words(b"r=x,s=AAAA,i=1"))] * 2, "second challenge|nonce does not"),
        ([Auth(ReasonCode.SUCCESS, words(b""))], "AUTH with success"),
    ],
)
async def test_a_broker_that_does_not_know_the_password_is_left(packets: list[Any], cause: str) -> None:
    async def script(scripted: ScriptedBroker) -> None:
        peer = await scripted.next()
        await peer.expect(Connect)
        await peer.send(*packets)
        await trio.sleep_forever()

    async with a_broker(script) as scripted:
        with pytest.raises(ConnectError, match=cause):
            async with connect(scripted, client_id="c", auth=ANN, reconnect=None, close_grace_s=0.1):
                pytest.fail("entered")


async def test_an_auth_that_nobody_asked_for_ends_it() -> None:
    async def script(scripted: ScriptedBroker) -> None:
        peer = await scripted.next()
        await peer.expect(Connect)
        await peer.send(ConnAck(False, ReasonCode.SUCCESS, Properties(authentication_method="JWT")))
        await peer.send(Auth(ReasonCode.CONTINUE_AUTHENTICATION, Properties(authentication_method="JWT")))
        await trio.sleep_forever()

    async with a_broker(script) as scripted:
        with pytest.raises(ConnectionLost, match="nobody asked for"):
            async with connect(scripted, client_id="c", auth=Token("x"), reconnect=None, close_grace_s=0.1):
                await trio.sleep_forever()
