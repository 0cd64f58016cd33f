"""Whose web pages may speak with a broker: the handshake by hand, and brokers as they are configured."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock

from broker import ConnectError, connect, open_broker
from broker.config import Config
from broker.errors import ConfigError
from broker.hub import Broker
from broker.net.doors import origins_at
from broker.net.listener import Listener, check
from broker.net.origins import allows, origin_fault
from broker.net.tls import TlsFiles
from tests.net.frames import Peer, request
from tests.net.relay import RelayEngine, admit, receive_all, running

EVIL = "https://evil.example"
GOOD = "https://dashboard.example"
LOCAL = ["http://localhost", "http://localhost:5173", "https://localhost:8443", "http://127.0.0.1:3000", "http://[::1]:3000", "https://[::1]"]
ELSEWHERE = [
    EVIL, "null", "", "http://localhost.evil.example", "http://evil.example/localhost", "http://localhost@evil.example", "http://127.0.0.1.evil.example",
    "http://192.0.2.1", "http://10.0.0.1", "file://", "localhost", "http://localhost:", "http://localhost:80:80", "http://localhost\n", "ftp://localhost",
    "chrome-extension://localhost", "http://localhost, http://localhost",
]  # fmt: skip


@pytest.mark.parametrize("origin", LOCAL)
def test_pages_of_this_machine(origin: str) -> None:
    assert allows(None, origin)
    assert not allows((), origin)
    assert not allows((GOOD,), origin), "who writes origins means those and no others"


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_pages_of_elsewhere(origin: str) -> None:
    assert not allows(None, origin)
    assert not allows((GOOD,), origin)
    assert allows((GOOD, "*"), origin)


@pytest.mark.parametrize("origin", [GOOD + ".evil.example", GOOD + "/", GOOD + ":8443", "http://dashboard.example", "HTTPS://DASHBOARD.EXAMPLE"])
def test_only_the_very_origin(origin: str) -> None:
    assert allows((GOOD,), GOOD)
    assert not allows((GOOD,), origin)


@pytest.mark.parametrize(
    "origin", ["*", GOOD, "http://localhost:5173", "http://[::1]:81", "https://x:80", "http://192.0.2.1:8080", "capacitor://localhost", "app://x"]
)
def test_origins_that_can_be_written(origin: str) -> None:
    assert origin_fault(origin) is None


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "dashboard.example",
        GOOD + "/",
        GOOD + "/x",
        GOOD + ":443",
        "http://[::1]:80",
        "https://Dashboard.example",
        "https://*.example",
        "//x",
        "https://ü",
    ],
)
def test_origins_that_no_browser_writes_are_mistakes(origin: str) -> None:
    assert origin_fault(origin)
    (fault,) = check(Listener(protocol="websocket", origins=(GOOD, origin)))
    assert fault.startswith("origins: ")


def test_origins_without_websocket_are_a_mistake() -> None:
    assert check(Listener(origins=(GOOD,))) == ['origins: means something only with protocol = "websocket"']
    with pytest.raises(TypeError, match="a tuple"):
        Listener(protocol="websocket", origins=GOOD)  # type: ignore[arg-type]  # what somebody will write


def test_in_the_file() -> None:
    def listeners(**keys: Any) -> dict[str, Any]:
        return {"listeners": [{"protocol": "websocket", **keys}]}

    assert Config.from_dict(listeners()).listeners[0].origins is None
    assert Config.from_dict(listeners(origins=[])).listeners[0].origins == ()
    assert Config.from_dict(listeners(origins=[GOOD, "*"])).listeners[0].origins == (GOOD, "*")
    env = {"BROKER__LISTENERS__0__ORIGINS": f'["{GOOD}"]'}
    assert Config.from_dict(listeners(), env=env).listeners[0].origins == (GOOD,)
    for wrong, said in (("*", 'expected a list, got "*"'), ([3], "expected a list of nothing but text in quotes"), (["null"], "any page can")):
        with pytest.raises(ConfigError) as caught:
            Config.from_dict(listeners(origins=wrong))
        ((place, told),) = caught.value.problems
        assert (place, told[: len(said)]) == ("listeners[0].origins", said)


# ---- what holds where nothing is written ------------------------------------------------------------------------------


async def nobody(_: object) -> str | None:
    return None


def test_what_holds_by_itself(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("")
    passwords = str(tmp_path / "passwords")
    ws = Listener(protocol="websocket", port=0)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.verify_mode = ssl.CERT_OPTIONAL
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    everybody = Listener(protocol="websocket", port=0, allow_anonymous=True)
    identity = Listener(protocol="websocket", tls=TlsFiles(certificate="x", client_ca="y", identity="cn"))
    own = Listener(protocol="websocket", password_file=passwords)
    assert origins_at(ws, None, None, None) is None
    assert origins_at(ws, Config(), None, plain) is None
    assert origins_at(ws, Config(allow_anonymous=True), None, None) == ("*",)
    assert origins_at(everybody, Config(), None, None) == ("*",)
    assert origins_at(own, Config(), None, plain) == ("*",)
    assert origins_at(ws, Config(password_file=passwords), None, None) == ("*",)
    assert origins_at(ws, None, nobody, None) == ("*",)
    # The browser shows its certificate for any page.
    assert origins_at(identity, Config(), None, asking) is None
    assert origins_at(ws, None, nobody, asking) is None
    assert origins_at(everybody, Config(), None, asking) is None
    for given in ((), (GOOD,), ("*",)):
        assert origins_at(Listener(protocol="websocket", origins=given), Config(password_file=passwords), nobody, asking) == given


# ---- the handshake ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origins", "sent", "status"),
    [
        (None, [], b"101"),
        (None, ["http://localhost:5173"], b"101"),
        (None, [EVIL], b"403"),
        (None, ["null"], b"403"),
        (None, ["http://localhost", EVIL], b"403"),
        ((), [], b"101"),
        ((), ["http://localhost"], b"403"),
        ((GOOD,), [GOOD], b"101"),
        ((GOOD,), [EVIL], b"403"),
        (("*",), ["null"], b"101"),
    ],
)
async def test_the_handshake(
    origins: tuple[str, ...] | None, sent: list[str], status: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    engine = RelayEngine()
    async with running(engine, Listener(port=0, protocol="websocket", origins=origins), grace_s=0) as server:
        with caplog.at_level(logging.INFO, "broker"):
            peer = Peer(await admit(server))
            await peer.stream.send_all(request(origins=sent))
            assert (await peer.head()).startswith(b"HTTP/1.1 " + status + b" ")
            if status == b"101":
                await trio.testing.wait_all_tasks_blocked()
                assert len(engine.links) == 1
                assert not caplog.records
                return
            await receive_all(peer.stream)
            await trio.testing.wait_all_tasks_blocked()
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == (f"WebSocket handshake failed with 192.0.2.7:50123: pages of {sent[-1]!r} may not use this listener; `origins` says which may")
        assert not engine.links
        assert not server.connections


@pytest.mark.parametrize("asked", [request("/secret", origins=[EVIL]), request(subprotocols=None, origins=[EVIL])], ids=["path", "subprotocol"])
async def test_a_page_that_may_not_come_learns_nothing_else(asked: bytes, autojump_clock: MockClock) -> None:
    async with running(RelayEngine(), Listener(port=0, protocol="websocket"), grace_s=0) as server:
        stream = await admit(server)
        await stream.send_all(asked)
        assert (await receive_all(stream)).startswith(b"HTTP/1.1 403 ")


async def test_an_origin_of_many_words_is_a_short_line(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with running(RelayEngine(), Listener(port=0, protocol="websocket"), grace_s=0) as server:
        with caplog.at_level(logging.INFO, "broker"):
            stream = await admit(server)
            await stream.send_all(request(origins=["http://localhost/" + "x" * 5000]))
            assert (await receive_all(stream)).startswith(b"HTTP/1.1 403 ")
            await trio.testing.wait_all_tasks_blocked()
        assert len(caplog.records) == 1
        assert len(caplog.records[0].getMessage()) < 300


# ---- whole brokers ----------------------------------------------------------------------------------------------------


async def comes_in(hub: Broker, origin: str | None, **options: Any) -> bool:
    headers = {} if origin is None else {"Origin": origin}
    with trio.fail_after(10):
        try:
            async with connect(hub.urls[0], headers=headers, reconnect=None, **options):
                return True
        except ConnectError as error:
            if "HTTP status 403" in str(error):
                return False
            raise


async def test_alone_on_this_machine() -> None:
    async with open_broker(listeners=["ws://127.0.0.1:0/mqtt"]) as hub:
        found = [await comes_in(hub, origin) for origin in (None, "http://localhost:8080", EVIL)]
    assert found == [True, True, False]


async def test_where_everybody_may_come_in_by_a_written_word() -> None:
    async with open_broker(Config(allow_anonymous=True), listeners=["ws://127.0.0.1:0/mqtt"]) as hub:
        assert await comes_in(hub, EVIL)
    async with open_broker(Config(allow_anonymous=True), listeners=[Listener(protocol="websocket", port=0, origins=(GOOD,))]) as hub:
        found = [await comes_in(hub, origin) for origin in (None, GOOD, EVIL)]
    assert found == [True, True, False]


async def test_a_certificate_that_the_browser_shows_is_not_the_pages(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    files = TlsFiles(certificate=str(tmp_path / "server.pem"), client_ca=str(tmp_path / "ca.pem"), require_certificate=True, identity="cn")
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    authority.issue_cert("ann.example", common_name="ann").configure_cert(tls)
    async with open_broker(listeners=[Listener(protocol="websocket", port=0, tls=files)]) as hub:
        found = [await comes_in(hub, origin, tls=tls) for origin in (None, "https://localhost", EVIL)]
    assert found == [True, True, False]


async def test_a_reload_takes_other_origins() -> None:
    def config(origins: list[str]) -> Config:
        return Config.from_dict({"listeners": [{"protocol": "websocket", "port": 0, "origins": origins}]})

    async with open_broker(config([GOOD])) as hub:
        assert [await comes_in(hub, GOOD), await comes_in(hub, EVIL)] == [True, False]
        assert list(hub.reload(config([EVIL]))) == []
        assert [await comes_in(hub, GOOD), await comes_in(hub, EVIL)] == [False, True]
