"""The control room: what it tells and does, over a real Unix socket; who may ask; and that very many clients, or a slow reader, stall nobody."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import trio
import trustme
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from broker import Bridge, BridgeTopic, Broker, ClientInfo, Config, ConfigError, Listener, TlsFiles, open_broker
from broker.control.room import BODY_BYTES_MAX, LINES_BYTES, NAMES_BYTES_MAX, Room, _pieces, _pieces_of_one, fault
from broker.inspection import STEP_COUNT, SubscriptionInfo
from broker.net.http import WRITE_TIMEOUT_S, Reception, serve
from broker.net.memory import memory_stream_pair
from broker.net.transport import StreamTransport
from broker.reasons import ReasonCode
from broker.wire.packets import Disconnect
from tests.metrics.visitor import Visitor
from tests.net.mqtt import Client
from tests.net.test_hub import attached
from tests.net.test_inspection import filled
from tests.systems import unix_only

NOT_PRIVATE = "protocol: control needs a Unix socket"


class Asker(Visitor):
    async def get(self, path: str) -> Any:
        reply = await self.ask(path)
        assert reply.status == 200, reply.text
        return reply.json


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
async def hub(path: Path) -> AsyncIterator[Broker]:
    async with open_broker(Config(shutdown_grace_s=0), listeners=[Listener(protocol="control", unix=str(path))]) as hub:
        yield hub


@pytest.fixture
async def asker(hub: Broker, path: Path) -> AsyncIterator[Asker]:
    async with await trio.open_unix_socket(str(path)) as stream:
        yield Asker(stream)


async def come(hub: Broker, nursery: trio.Nursery, client_id: str, username: str | None = None, *filters: str) -> Client:
    client = await attached(hub, nursery, peer="here")
    await client.connect(client_id, session_expiry_s=100, username=username)
    for filter in filters:
        await client.subscribe(filter, 1)
    return client


async def leave(client: Client) -> None:
    await client.send(Disconnect())
    assert await client.receive() is None
    await client.stream.aclose()


# ---- to look -------------------------------------------------------------------------------------------------------------


@unix_only
async def test_clients_all_and_some(hub: Broker, asker: Asker) -> None:
    assert await asker.get("/clients") == {"clients": [], "more": False}
    async with trio.open_nursery() as nursery:
        clients = [await come(hub, nursery, f"dev-{name}", name) for name in ("ann", "ben", "cy")]
        clients.append(await come(hub, nursery, "tool", "ann"))
        await leave(clients[1])

        async def named(query: str) -> list[str]:
            return [one["client_id"] for one in (await asker.get(f"/clients{query}"))["clients"]]

        assert await named("") == ["dev-ann", "dev-ben", "dev-cy", "tool"]
        assert await named("?connected=true") == ["dev-ann", "dev-cy", "tool"]
        assert await named("?connected=false") == ["dev-ben"]
        assert await named("?username=ann&prefix=dev-") == ["dev-ann"]
        await clients[0].subscribe("x", 1)
        await hub.publish("x", "y", qos=1)
        assert await named("?waiting=true") == ["dev-ann"]
        assert await named("?waiting=false") == ["dev-ben", "dev-cy", "tool"]
        assert await named("?limit=2") == ["dev-ann", "dev-ben"]
        assert (await asker.get("/clients?limit=3"))["more"] is True
        assert (await asker.get("/clients?limit=4"))["more"] is False
        assert (await asker.get(f"/clients?limit={2**63 - 1}"))["more"] is False
        assert (await asker.get("/clients?limit=1&connected=false"))["more"] is False
        (info,) = (await asker.get("/clients?prefix=tool"))["clients"]
        assert info.keys() == set(ClientInfo.__struct_fields__)
        assert (info["peer"], info["version"], info["session_expiry_s"]) == ("here", "5.0", 100)
        head = await asker.ask("/clients", "HEAD")
        assert (head.status, head.text) == (200, "")
        for client in clients:
            await client.stream.aclose()


@unix_only
@pytest.mark.parametrize("client_id", ["c", "a/b c", "../x", "ü%2F?#", "clients"])
async def test_one_client_with_what_it_subscribes_to(hub: Broker, asker: Asker, client_id: str) -> None:
    async with trio.open_nursery() as nursery:
        client = await come(hub, nursery, client_id, None, "a/+", "$share/g/b")
        found = await asker.get(f"/clients/{quote(client_id, safe='')}")
        assert (found["client_id"], found["subscriptions_count"]) == (client_id, 2)
        options = {"client_id": client_id, "qos": 1, "no_local": False, "retain_as_published": False, "identifier": None}
        assert found["subscriptions"] == [
            {"filter": "a/+", "share_group": None, **options},
            {"filter": "$share/g/b", "share_group": "g", **options},
        ]
        await client.stream.aclose()


@unix_only
@pytest.mark.parametrize("count", [0, 1, STEP_COUNT, STEP_COUNT + 1])
async def test_one_client_with_very_many_subscriptions(hub: Broker, asker: Asker, count: int) -> None:
    async with trio.open_nursery() as nursery:
        client = await come(hub, nursery, "c", None, *map(str, range(count)))
        assert [one["filter"] for one in (await asker.get("/clients/c"))["subscriptions"]] == list(map(str, range(count)))
        await client.stream.aclose()


@unix_only
async def test_who_would_be_sent_a_message(hub: Broker, asker: Asker) -> None:
    async with trio.open_nursery() as nursery:
        clients = [await come(hub, nursery, name, None, f"{name}/+", "#") for name in ("a", "b")]
        found = await asker.get("/subscribers?topic=a/b%20c")
        assert [(one["client_id"], one["filter"], one["qos"]) for one in found["subscribers"]] == [("a", "#", 1), ("b", "#", 1), ("a", "a/+", 1)]
        assert (await asker.get("/subscribers?topic=$SYS/x"))["subscribers"] == []
        for client in clients:
            await client.stream.aclose()


@unix_only
async def test_retained_messages_without_what_is_in_them(hub: Broker, asker: Asker) -> None:
    await hub.publish("a/b", "secret", qos=1, retain=True)
    await hub.publish("a/c", "", retain=True)
    await hub.publish("b", "12345", retain=True, message_expiry_s=3600)
    reply = await asker.ask("/retained")
    assert "secret" not in reply.text
    assert reply.json == {
        "retained": [
            {"topic": "a/b", "payload_bytes": 6, "qos": 1, "expires_in_s": None},
            {"topic": "b", "payload_bytes": 5, "qos": 0, "expires_in_s": 3600},
        ],
        "more": False,
    }
    assert [one["topic"] for one in (await asker.get("/retained?filter=+/b"))["retained"]] == ["a/b"]  # a "+" is no space here
    assert (await asker.get("/retained?filter=%23&limit=1"))["more"] is True


@unix_only
async def test_bridges_and_statistics(path: Path) -> None:
    async with open_broker() as far:
        bridge = Bridge(name="cloud", url=far, topics=[BridgeTopic(filter="a/#")])
        near = open_broker(listeners=[Listener(protocol="control", unix=str(path))], bridges=[bridge])
        async with near as hub, await trio.open_unix_socket(str(path)) as stream:
            (found,) = (await Asker(stream).get("/bridges"))["bridges"]
            assert (found["name"], found["client_id"], found["dropped"]) == ("cloud", "bridge:cloud", {})
            assert (await Asker(stream).get("/statistics")).keys() == hub.statistics().keys()


# ---- to do ---------------------------------------------------------------------------------------------------------------


@unix_only
async def test_a_client_is_thrown_out_and_the_log_says_by_whom(hub: Broker, asker: Asker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        client = await come(hub, nursery, "a/b")
        assert (await asker.ask("/clients/a%2Fb", "DELETE")).json == {"was_connected": True, "session_dropped": False}
        assert await client.receive() == Disconnect(ReasonCode.ADMINISTRATIVE_ACTION)
        await client.stream.aclose()
    assert (await asker.ask("/clients/a%2Fb?session=keep", "DELETE")).json == {"was_connected": False, "session_dropped": False}
    assert (await asker.ask("/clients/a%2Fb?session=drop", "DELETE")).json == {"was_connected": False, "session_dropped": True}
    reply = await asker.ask("/clients/a%2Fb", "DELETE")
    assert (reply.status, reply.json) == (404, {"error": "there is no client 'a/b', and no session of it"})
    who = f"unix (process {os.getpid()} of user {os.getuid()})" if sys.platform == "linux" else "unix"
    assert [line for line in caplog.messages if line.startswith("control:")] == [
        f"control: 'a/b' was thrown out by {who}",
        f"control: 'a/b' was thrown out, and its session dropped, by {who}",
    ]


@unix_only
async def test_bans_come_and_go(hub: Broker, asker: Asker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        client = await come(hub, nursery, "a", "ann")
        reply = await asker.ask("/bans", "POST", body=b'{"username": "ann", "until": "2901-01-01T00:00:00Z"}')
        assert reply.json == {"disconnected_count": 1}
        assert await client.receive() == Disconnect(ReasonCode.ADMINISTRATIVE_ACTION)
        await client.stream.aclose()
    ban = {"client_id": None, "username": "ann", "address": None, "until": "2901-01-01T00:00:00Z", "in_config": False}
    assert await asker.get("/bans") == {"bans": [ban], "more": False}
    assert hub.bans()[0].until == datetime(2901, 1, 1, tzinfo=UTC)
    assert (await asker.ask("/bans?username=ann&client_id=a", "DELETE")).status == 404
    assert (await asker.ask("/bans?username=ann", "DELETE")).json == {}
    assert hub.bans() == []
    assert [line.partition(" by unix")[0] for line in caplog.messages if line.startswith("control:")] == [
        "control: username 'ann', until '2901-01-01 00:00:00+00:00' was banned",
        "control: the ban of username 'ann' was taken back",
    ]


@unix_only
async def test_the_longest_names_that_mqtt_has_are_no_shelter(asker: Asker, hub: Broker) -> None:
    client_id, username = "\x01" * 65_535, "\x02" * 65_535  # as long as can be, percent-encoded and in JSON
    async with trio.open_nursery() as nursery:
        client = await come(hub, nursery, client_id, username)
        assert (await asker.get(f"/clients/{quote(client_id)}"))["client_id"] == client_id
        assert (await asker.ask("/bans", "POST", body=json.dumps({"client_id": client_id, "username": username}).encode())).status == 200
        assert (await asker.ask(f"/bans?client_id={quote(client_id)}&username={quote(username)}", "DELETE")).status == 200
        assert (await asker.ask(f"/clients/{quote(client_id)}?session=drop", "DELETE")).json["session_dropped"] is True
        await client.stream.aclose()


@unix_only
async def test_bans_of_the_config_are_listed_and_stay(path: Path) -> None:
    config = Config.from_dict({"listeners": [{"protocol": "control", "unix": str(path)}], "banned": [{"address": "192.0.2.0/24"}]})
    async with open_broker(config), await trio.open_unix_socket(str(path)) as stream:
        asker = Asker(stream)
        assert (await asker.get("/bans"))["bans"][0]["in_config"] is True
        reply = await asker.ask("/bans?address=192.0.2.0/24", "DELETE")
        assert (reply.status, reply.json) == (409, {"error": "this ban is the config's: take it out of [[banned]] there"})


# ---- what cannot be ------------------------------------------------------------------------------------------------------


@unix_only
@pytest.mark.parametrize(
    ("method", "target", "body", "status", "said"),
    [
        ("GET", "/", b"", 404, "there are /clients, /clients/ID, /subscribers"),
        ("GET", "/clients/a/b", b"", 404, "there are /clients"),
        ("GET", "/x/clients/a", b"", 404, "there are /clients"),
        ("GET", "/clients/nobody", b"", 404, "there is no client 'nobody'"),
        ("GET", "/clients/%ff", b"", 400, "'%ff' is not UTF-8"),
        ("PUT", "/clients", b"", 405, "nothing but GET is served here"),
        ("POST", "/clients/a", b"{}", 405, "nothing but GET, DELETE is served here"),
        ("GET", "/clients?conected=true", b"", 400, "unknown parameter 'conected'; there are connected, waiting, username, prefix, limit"),
        ("GET", "/statistics?x=1", b"", 400, "unknown parameter 'x'; there are none here"),
        ("GET", "/clients?connected=yes", b"", 400, "connected: expected true or false, got 'yes'"),
        ("GET", "/clients?prefix=a&prefix=b", b"", 400, "prefix is there twice"),
        ("GET", "/clients?prefix=%ff", b"", 400, "'%ff' is not UTF-8"),
        ("GET", "/clients?limit=0", b"", 400, "limit: expected a number from 1 on, got '0'"),
        ("GET", "/clients?limit=-1", b"", 400, "limit: expected a number from 1 on"),
        ("GET", f"/clients?limit={10**19}", b"", 400, "limit: expected a number from 1 on"),
        ("DELETE", "/clients/a?session=all", b"", 400, "session: expected drop or keep"),
        ("GET", "/subscribers", b"", 400, "say which: ?topic=a/b"),
        ("GET", "/subscribers?topic=a/+", b"", 400, "'a/+' is not a topic name"),
        ("GET", "/retained?filter=a%23", b"", 400, "'a#' is not a topic filter"),
        ("POST", "/bans", b"", 400, "expected {"),
        ("POST", "/bans", b"{}", 400, "expected client_id, username or address"),
        ("POST", "/bans", b'{"user": "ann"}', 400, "unknown field `user`"),
        ("POST", "/bans", b'{"username": 1}', 400, "Expected `str | null`"),
        ("POST", "/bans", b'{"username": "\xff"}', 400, "expected {"),
        ("POST", "/bans", b'{"address": "here"}', 400, "address: expected an address or a network"),
        ("DELETE", "/bans", b"", 400, "say whose"),
        ("DELETE", "/bans?username=ann", b"", 404, "there is no ban of exactly username 'ann'"),
        ("POST", "/bans", b" " * (BODY_BYTES_MAX + 1), 413, f"the body of a request has {BODY_BYTES_MAX:,} bytes at most"),
    ],
)
async def test_what_is_wrong_is_said_in_a_line(asker: Asker, method: str, target: str, body: bytes, status: int, said: str) -> None:
    reply = await asker.ask(target, method, body=body)
    assert reply.status == status
    (line,) = reply.json.values()
    assert said in line
    assert "\n" not in line
    assert ("allow" in reply.headers) == (status == 405)


@unix_only
@pytest.mark.parametrize("header", ["Origin", "Sec-Fetch-Site"])
async def test_web_pages_get_nothing(hub: Broker, asker: Asker, header: str) -> None:
    reply = await asker.ask("/bans", "POST", headers={header: "none"}, body=b'{"username": "ann"}')
    assert (reply.status, reply.json) == (403, {"error": "this is not for web pages"})
    assert (await asker.ask("/clients", headers={header: "null"})).status == 403
    assert hub.bans() == []


@unix_only
async def test_what_is_no_http_is_told_so_in_json_too(hub: Broker, path: Path) -> None:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x00\x00\x00\r\n\r\n")
        head, _, body = (await Visitor(stream).rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]


# ---- who may ask ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, NOT_PRIVATE),
        ({"port": 9884}, NOT_PRIVATE),
        ({"host": "*", "port": 9884}, NOT_PRIVATE),
        ({"port": 9884, "allow_anonymous": True}, NOT_PRIVATE),
        ({"unix": "x", "allow_anonymous": True}, 'allow_anonymous: means nothing with protocol = "control"'),
        ({"unix": "x", "password_file": None, "mount_point": "a/"}, 'mount_point: means nothing with protocol = "control"'),
        ({"unix": "x", "proxy_protocol_from": ["unix"]}, 'proxy_protocol_from: means nothing with protocol = "control"'),
        ({"unix": "x", "unix_mode": "rw"}, "unix_mode: expected octal digits"),
    ],
)
def test_a_listener_that_lets_strangers_in_is_a_mistake(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"listeners": [{"protocol": "control"} | {key: value for key, value in keys.items() if value is not None}]})
    assert f"listeners[0].{said}" in str(caught.value)


@pytest.mark.parametrize("listener", [Listener(protocol="control"), Listener(protocol="control", allow_anonymous=True, host="::1")])
async def test_and_so_it_is_in_a_program(listener: Listener) -> None:
    with pytest.raises(ConfigError, match=NOT_PRIVATE):
        async with open_broker(listeners=[listener]):
            pytest.fail("entered")


def test_a_socket_of_systemds_is_looked_at_when_it_is_there() -> None:
    assert Config.from_dict({"listeners": [{"protocol": "control", "systemd": "control"}]})


@unix_only
async def test_sockets_that_listen_already_are_taken_if_a_path_says_who_may_open_them(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        here = open_broker(listeners=[Listener(protocol="control", descriptor=os.dup(listening.fileno()))])
        async with here, await trio.open_unix_socket(str(path)) as stream:
            assert (await Asker(stream).get("/clients"))["clients"] == []
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(ConfigError, match=NOT_PRIVATE):
        async with open_broker(listeners=[Listener(protocol="control", descriptor=listening.fileno())]):
            pytest.fail("entered")


@unix_only
async def test_systemds_own_mode_lets_everybody_in_and_is_not_taken(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o666)
        with pytest.raises(ConfigError, match="anybody on this machine may open .*; SocketMode=0600"):
            async with open_broker(listeners=[Listener(protocol="control", descriptor=listening.fileno())]):
                pytest.fail("entered")


async def test_a_reload_lets_nobody_else_in(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    files = TlsFiles(certificate=str(tmp_path / "server.pem"), client_ca=str(tmp_path / "ca.pem"), require_certificate=True)
    asks, asks_not = (Config(listeners=(Listener(protocol="control", port=0, tls=replace(files, require_certificate=one)),)) for one in (True, False))
    async with open_broker(asks) as hub:
        assert hub.reload(asks) == []
        with pytest.raises(ConfigError, match=NOT_PRIVATE):
            hub.reload(asks_not)
        assert hub._server.bound[0].listener.asks_certificate


@pytest.mark.skipif(sys.platform != "linux", reason="there are no abstract names")
@pytest.mark.parametrize("handed_over", [False, True])
async def test_an_abstract_name_has_no_mode(handed_over: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # any that is free
        listening.listen()
        where: dict[str, Any] = {"descriptor": listening.fileno()} if handed_over else {"unix": "\0control"}
        with pytest.raises(ConfigError, match="control needs a Unix socket that has a path"):
            async with open_broker(listeners=[Listener(protocol="control", **where)]):
                pytest.fail("entered")


@unix_only
@pytest.mark.parametrize(("keys", "mode"), [({}, 0o600), ({"unix_mode": "0660"}, 0o660)])
async def test_nobody_else_may_open_it_unless_that_is_written(path: Path, keys: dict[str, str], mode: int) -> None:
    config = Config.from_dict({"listeners": [{"protocol": "control", "unix": str(path)} | keys, {"unix": f"{path}.mqtt"} | keys]})
    async with open_broker(config):
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_IMODE(Path(f"{path}.mqtt").stat().st_mode) == 0o660


async def test_over_tls_whoever_shows_a_certificate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    tls = {"certificate": "server.pem", "client_ca": "ca.pem", "require_certificate": True}

    def written(**changes: Any) -> Path:
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in (tls | changes).items())
        file = tmp_path / "broker.toml"
        file.write_text(f'[[listeners]]\nprotocol = "control"\nport = 0\n[listeners.tls]\n{lines}')
        return file

    with pytest.raises(ConfigError, match=NOT_PRIVATE):
        Config.load(written(require_certificate=False), env={})
    with pytest.raises(ConfigError, match=r"port: is missing: protocol = \"control\" over TLS needs a port that is not MQTT's"):
        Config.from_dict({"listeners": [{"protocol": "control", "tls": {"certificate": "server.pem"}}]})
    async with open_broker(Config.load(written(), env={})) as hub:
        assert hub.urls[0].startswith("https://127.0.0.1:")
        port = int(hub.urls[0].rpartition(":")[2])
        context = ssl.create_default_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        authority.configure_trust(context)
        authority.issue_cert(common_name="ann").configure_cert(context)
        stream = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, server_hostname="127.0.0.1", https_compatible=True)
        async with stream:
            asker = Asker(stream)
            assert (await asker.ask("/bans", "POST", body=b'{"username": "eve"}')).status == 200
            assert (await asker.ask("/clients", headers={"Origin": "https://127.0.0.1"})).status == 403
        async with await trio.open_tcp_stream("127.0.0.1", port) as stranger:
            await stranger.send_all(b"GET /clients HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1" not in await Visitor(stranger).rest()
    (line,) = [line for line in caplog.messages if line.startswith("control:")]
    assert line.startswith("control: username 'eve' was banned by 127.0.0.1:")
    assert line.endswith(", 'ann', and 0 thrown out")


def test_a_context_that_asks_nobody_is_no_lock() -> None:
    asks = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert not Listener(protocol="control", tls=asks).asks_certificate
    asks.verify_mode = ssl.CERT_REQUIRED
    assert Listener(protocol="control", tls=asks).asks_certificate
    assert not Listener(tls=TlsFiles(certificate="x")).asks_certificate


# ---- very many, and the end ------------------------------------------------------------------------------------------------


class Counted(Broker):
    """Notes how many steps were taken."""

    steps_count: int

    def client_slices(self) -> Iterator[Sequence[ClientInfo]]:
        for some in super().client_slices():
            self.steps_count += 1
            yield some


async def test_of_very_many_clients_no_more_is_made_than_is_read(autojump_clock: MockClock) -> None:
    count = 6 * STEP_COUNT + 1
    async with open_broker() as hub:
        await filled(hub, count)
        hub.__class__ = Counted
        assert isinstance(hub, Counted)

        async def visited(nursery: trio.Nursery) -> Asker:
            hub.steps_count = 0
            ours, theirs = memory_stream_pair(STEP_COUNT * 100)
            nursery.start_soon(serve, StreamTransport(theirs), "somebody", Reception(Room(hub)._answer, fault, BODY_BYTES_MAX))
            return Asker(ours)

        async with trio.open_nursery() as nursery:
            asker = await visited(nursery)
            assert [one["client_id"] for one in (await asker.get("/clients"))["clients"]] == [f"c{number}" for number in range(count)]
            assert hub.steps_count == 7
            await asker.stream.aclose()
        async with trio.open_nursery() as nursery:
            asker = await visited(nursery)
            await asker.stream.send_all(b"GET /clients HTTP/1.1\r\nHost: x\r\n\r\n")
            await wait_all_tasks_blocked()
            assert hub.steps_count == 1
            began = trio.current_time()
            await trio.sleep(WRITE_TIMEOUT_S + 1)
            await wait_all_tasks_blocked()
            assert hub.steps_count == 1
            assert len(nursery.child_tasks) == 0  # it is dropped
            assert trio.current_time() >= began + WRITE_TIMEOUT_S
            await asker.stream.aclose()
        async with trio.open_nursery() as nursery:
            asker = await visited(nursery)
            nursery.start_soon(asker.get, "/clients?prefix=nobody")
            seen = [0]
            while seen[-1] < 7:
                await trio.lowlevel.checkpoint()
                seen.append(hub.steps_count)
            assert max(after - before for before, after in pairwise(seen)) <= 2  # others have a turn for each: in one batch before it, in one behind
            await wait_all_tasks_blocked()
            await asker.stream.aclose()


def test_very_long_names_do_not_make_large_pieces() -> None:
    """256 of them, as one piece, were 200 MB."""
    infos = [
        ClientInfo(client_id="\x01" * 65_535, username="\x02" * 65_535, peer=None, version=None, connected_at_s=None, queue_count=0, queue_bytes=0)
        for _ in range(9)
    ]
    pieces = list(_pieces("clients", [infos[:3], [], infos[3:9]], math.inf))
    assert max(map(len, pieces)) < LINES_BYTES + 6 * NAMES_BYTES_MAX + 1_000
    assert len(pieces) > 9
    assert json.loads(b"".join(pieces)) == {"clients": json.loads(msgspec.json.encode(infos)), "more": False}
    subscriptions = [SubscriptionInfo(client_id="c", filter="\x01" * 65_535, qos=0) for _ in range(3)]
    pieces = list(_pieces_of_one(infos[0], subscriptions))
    assert len(json.loads(b"".join(pieces))["subscriptions"]) == 3


@unix_only
async def test_who_is_still_told_goodbye_can_be_seen(path: Path) -> None:
    async with open_broker(listeners=[Listener(protocol="control", unix=str(path))]) as hub, trio.open_nursery() as nursery:
        client = await come(hub, nursery, "a")
        async with await trio.open_unix_socket(str(path)) as stream:
            asker = Asker(stream)
            nursery.start_soon(hub.shutdown, 1000)
            assert isinstance(await client.receive(), Disconnect)
            assert (await asker.get("/statistics"))["connections_open_count"] == 1
            await client.stream.aclose()
            assert await asker.rest() == b""
    assert not path.exists()


@unix_only
async def test_it_needs_no_extra(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with open_broker(listeners=[Listener(protocol="control", unix=str(path))]), await trio.open_unix_socket(str(path)) as stream:
        reply = await Asker(stream).ask("/statistics")
        assert reply.status == 200
