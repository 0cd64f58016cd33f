"""MQTT's byte stream over WebSocket: frames of every cut, both handshakes and how they fail, closing, and what holds memory down."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from broker import ConnectError, connect, open_broker
from broker.net import websocket
from broker.net.listen import bind_all
from broker.net.listener import Listener
from broker.net.memory import memory_stream_pair
from broker.net.server import Server
from broker.net.transport import StreamTransport
from broker.wire.codec import encode
from broker.wire.packets import Connect
from tests.net.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, frame, request, response
from tests.net.relay import RelayEngine, admit, port_of, receive_all, running, wait_until_gone
from tests.systems import unix_only

WS = Listener(port=0, protocol="websocket")


@asynccontextmanager
async def served(engine: RelayEngine, buffer_bytes_max: int = 65_536, **limits: float) -> AsyncIterator[tuple[Server, Peer]]:
    """A server and a peer whose handshake is done."""
    async with running(engine, WS, grace_s=0, **limits) as server:
        peer = Peer(await admit(server, buffer_bytes_max))
        assert (await peer.handshake()).startswith(b"HTTP/1.1 101 ")
        yield server, peer


# ---- bytes ---------------------------------------------------------------------------------------------------------------


async def test_a_packet_over_many_frames_byte_by_byte() -> None:
    engine = RelayEngine(relays=False)
    async with served(engine) as (_, peer):
        for byte in frame(b"abc") + frame(b"d", fin=False) + frame(b"", CONTINUATION, fin=False) + frame(b"e", CONTINUATION):
            await peer.stream.send_all(bytes([byte]))
        for byte in b"fgh":
            await peer.send(bytes([byte]))
        await wait_all_tasks_blocked()
        assert engine.received == b"abcdefgh"


async def test_the_frames_of_one_read_are_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a frame a packet: 71 µs a message of the broker's time when each is handed on alone, 11 together."""
    engine = RelayEngine(relays=False)
    pieces: list[bytes] = []

    def receive(link: object, data: bytes, now: float) -> bool:
        pieces.append(data)
        return False

    monkeypatch.setattr(engine, "receive", receive)
    async with served(engine) as (_, peer):
        await peer.stream.send_all(frame(b"0123456789") * 1000)
        await wait_all_tasks_blocked()
        assert pieces == [b"0123456789" * 1000]


async def test_an_unfinished_message_is_handed_on_as_it_comes() -> None:
    """A library that waits for the end of a message would hold whatever a peer likes to send before it."""
    engine = RelayEngine(relays=False)
    async with served(engine) as (_, peer):
        await peer.send(b"x" * 100_000, fin=False)
        for _ in range(20):
            await peer.stream.send_all(frame(b"", CONTINUATION, fin=False) * 5_000)
            await peer.send(b"y" * 100_000, CONTINUATION, fin=False)
        await wait_all_tasks_blocked()
        assert len(engine.received) == 2_100_000


async def test_a_ping_inside_a_message_is_answered() -> None:
    engine = RelayEngine(relays=False)
    async with served(engine) as (_, peer):
        await peer.send(b"a", fin=False)
        await peer.send(b"are you there?", PING)
        await peer.send(b"b", CONTINUATION)
        assert await peer.receive() == (PONG, b"are you there?")
        await wait_all_tasks_blocked()
        assert engine.received == b"ab"


async def test_many_packets_leave_in_one_frame() -> None:
    engine = RelayEngine()
    async with served(engine) as (server, peer):
        await wait_all_tasks_blocked()
        for _ in range(1000):
            engine.send(engine.links[0], b"0123456789")
        server.flush()
        assert await peer.receive() == (BINARY, b"0123456789" * 1000)


async def test_megabytes_both_ways() -> None:
    engine = RelayEngine()
    data = os.urandom(5_000_000)
    async with served(engine) as (_, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, data)
        assert await peer.receive_bytes(len(data)) == data


# ---- backpressure ---------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_leaves_the_bytes_where_they_are_counted() -> None:
    engine = RelayEngine()
    data = os.urandom(1_000_000)
    async with served(engine, buffer_bytes_max=4096) as (server, peer):
        await wait_all_tasks_blocked()
        engine.send(engine.links[0], data)
        server.flush()
        await wait_all_tasks_blocked()
        assert len(engine.links[0].out) == len(data)
        assert len(server.writing) == 1
        assert await peer.receive_bytes(len(data)) == data
        await wait_all_tasks_blocked()
        assert not server.writing


async def test_a_paused_link_makes_its_peer_wait() -> None:
    engine = RelayEngine(relays=False)
    sent = 0
    async with served(engine, buffer_bytes_max=4096) as (server, peer), trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal sent
            while sent < 1_000_000:
                await peer.send(b"x" * 10_000)
                sent += 10_000

        await peer.send(b"!pause")
        await wait_all_tasks_blocked()
        nursery.start_soon(flood)
        await wait_all_tasks_blocked()
        assert sent < 4 * websocket.READ_BYTES
        engine.unpause(engine.links[0])
        server.flush()
        await wait_all_tasks_blocked()
        assert len(engine.received) == sent == 1_000_000


# ---- what is no MQTT over WebSocket ----------------------------------------------------------------------------------------


async def test_a_text_message_closes_after_what_was_before_it(caplog: pytest.LogCaptureFixture) -> None:
    engine = RelayEngine(relays=False)
    async with served(engine) as (server, peer):
        await peer.stream.send_all(frame(b"good") + frame(b"bad", TEXT) + frame(b"never") + frame(b"worse", TEXT, fin=False))
        closing = await peer.receive()
        assert closing is not None
        assert closing == (CLOSE, (1003).to_bytes(2) + b"MQTT travels in binary messages, and a text message came")
        await peer.send(closing[1], CLOSE)
        assert await peer.receive() is None
        await wait_all_tasks_blocked()
        assert engine.received == b"good"
        assert len(engine.detached) == 1
        assert not server.connections


BROKEN_FRAMES = {
    "not masked": frame(b"x", masked=False),
    "an opcode that does not exist": frame(b"x", 3),
    "a control opcode that does not exist": frame(b"x", 11),
    "a reserved bit": bytes([0xC2]) + frame(b"x")[1:],
    "a continuation of nothing": frame(b"x", CONTINUATION),
    "a message inside a message": frame(b"x", fin=False) + frame(b"y"),
    "text that is not UTF-8": frame(b"\xff", TEXT),
    "a control frame in pieces": frame(b"x", PING, fin=False),
    "a length of 2 to the 63": bytes([0x82, 0xFF, 0x80]) + bytes(7) + b"mask",
}


@pytest.mark.parametrize("data", BROKEN_FRAMES.values(), ids=BROKEN_FRAMES)
async def test_a_broken_frame_closes(data: bytes, autojump_clock: MockClock) -> None:
    engine = RelayEngine(relays=False)
    async with served(engine, close_timeout_s=5) as (server, peer):
        await peer.send(b"good")
        await peer.stream.send_all(data + b"more of whatever it is" * 10_000)
        began = trio.current_time()
        while (one := await peer.receive()) is not None:
            opcode, payload = one
            assert opcode == CLOSE
            assert int.from_bytes(payload[:2]) in (1002, 1007)
        assert trio.current_time() - began <= websocket.DEAF_CLOSE_S
        await wait_all_tasks_blocked()
        assert engine.received.startswith(b"good")
        assert len(engine.received) <= 5
        assert not server.connections


# ---- closing ---------------------------------------------------------------------------------------------------------------


async def test_our_last_words_come_before_the_close_frame() -> None:
    engine = RelayEngine()
    async with served(engine) as (server, peer):
        await peer.send(b"!close")
        await peer.send(b"more" * 10_000)  # is thrown away
        assert await peer.receive() == (BINARY, b"bye")
        closing = await peer.receive()
        assert closing == (CLOSE, (1000).to_bytes(2))
        await peer.send(closing[1], CLOSE)
        assert await peer.receive() is None
        await wait_all_tasks_blocked()
        assert not server.connections


async def test_a_peer_that_does_not_answer_the_close_frame_is_given_up(autojump_clock: MockClock) -> None:
    engine = RelayEngine()
    async with served(engine, close_timeout_s=3) as (server, peer):
        await peer.send(b"!close")
        began = trio.current_time()
        await wait_until_gone(server)
        assert trio.current_time() - began == 3


async def test_the_peers_close_frame_is_answered() -> None:
    engine = RelayEngine(relays=False)
    async with served(engine) as (server, peer):
        await peer.stream.send_all(frame(b"last") + frame((1001).to_bytes(2) + b"going away", CLOSE))
        answer = await peer.receive()
        assert answer is not None
        assert (answer[0], answer[1][:2]) == (CLOSE, (1001).to_bytes(2))
        assert await peer.receive() is None
        await wait_all_tasks_blocked()
        assert engine.received == b"last"
        assert len(engine.detached) == 1
        assert not server.connections


async def test_a_connection_that_just_ends_is_gone() -> None:
    engine = RelayEngine(relays=False)
    async with served(engine) as (server, peer):
        await peer.stream.send_all(frame(b"whole") + frame(b"half")[:7])
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert engine.received.startswith(b"whole")
        assert len(engine.detached) == 1
        assert not server.connections


# ---- the server's handshake ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [("mqtt", b"mqtt"), ("mqttv3.1", b"mqttv3.1"), ("mqttv3.1, mqtt", b"mqtt"), ("chat, mqtt, wamp", b"mqtt")],
)
async def test_the_subprotocol_is_chosen(offered: str, chosen: bytes) -> None:
    async with running(RelayEngine(), WS, grace_s=0) as server:
        head = await Peer(await admit(server)).handshake(subprotocols=offered)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nsec-websocket-protocol: " + chosen + b"\r\n" in head.lower()


@pytest.mark.parametrize("asked", ["/mqtt", "/mqtt?token=x", "/", "/?token=x"])
async def test_a_path_that_nobody_chose_is_also_the_root_and_a_query_does_no_harm(asked: str) -> None:
    async with running(RelayEngine(), WS, grace_s=0) as server:
        assert (await Peer(await admit(server)).handshake(asked)).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(("path", "asked"), [("/chosen", "/"), ("/chosen", "/mqtt"), ("/", "/mqtt"), ("/mqtt/", "/")])
async def test_a_path_that_was_chosen_is_meant(path: str, asked: str) -> None:
    async with running(RelayEngine(), Listener(port=0, protocol="websocket", path=path), grace_s=0) as server:
        assert (await Peer(await admit(server)).handshake(asked)).startswith(b"HTTP/1.1 404 ")


async def test_neither_side_need_say_a_path() -> None:
    async with open_broker(listeners=["ws://127.0.0.1:0"]) as hub:
        (url,) = hub.urls
        assert url.endswith("/mqtt")
        for asked in (url, url.removesuffix("/mqtt"), url.removesuffix("mqtt")):
            async with connect(asked, reconnect=None) as client:
                await client.publish("a", "b", qos=1)


REFUSED = {
    "another path": (request("/ws"), b"404", "it asked for '/ws', and MQTT is at '/mqtt'"),
    "two slashes": (request("//"), b"404", "it asked for '//'"),
    "a path below": (request("/mqtt/x"), b"404", "it asked for '/mqtt/x'"),
    "a long path": (request("/" + "x" * 5000), b"404", "it asked for '/xxx"),
    "no subprotocol": (request(subprotocols=None), b"400", "did not offer the subprotocol mqtt"),
    "another subprotocol": (request(subprotocols="MQTT, chat"), b"400", "did not offer the subprotocol mqtt"),
    "a page": (b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400", "Missing header, 'Connection: Upgrade'"),
    "a form": (b"POST /mqtt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nxy", b"400", "Request method must be GET"),
    "an older version": (request().replace(b"Version: 13", b"Version: 8"), b"426", "Sec-WebSocket-Version"),
    "a CONNECT packet": (b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00", b"400", "this looks like MQTT without WebSocket"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"400", "this looks like TLS"),
    "another packet": (b"\x40\x02\x00\x01\r\n\r\n", b"400", "Bad HTTP message"),
    "a header that is not ASCII": (request(subprotocols="mqtt").replace(b": mqtt", b": mq\xff"), b"400", "a header is not ASCII"),
    "a host that is not ASCII": (request(host="x").replace(b"Host: x", b"Host: \xff"), b"400", "a header is not ASCII"),
    "headers without end": (b"GET /mqtt HTTP/1.1\r\n" + b"X: y\r\n" * 20_000, b"400", "Bad HTTP message"),
}


@pytest.mark.parametrize(("data", "status", "said"), REFUSED.values(), ids=REFUSED)
async def test_another_request_gets_a_status_and_a_line_in_the_log(
    data: bytes, status: bytes, said: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    engine = RelayEngine()
    async with running(engine, WS, grace_s=0) as server:
        ours = await admit(server, 1_000_000)
        with caplog.at_level(logging.INFO, "broker"):
            await ours.send_all(data)
            answer = await receive_all(ours)
            await wait_all_tasks_blocked()
        assert answer.startswith(b"HTTP/1.1 " + status + b" ")
        assert answer.lower().count(b"content-length:") == 1
        (line,) = [record.getMessage() for record in caplog.records if record.name == "broker"]
        assert line.startswith("WebSocket handshake failed with 192.0.2.7:50123: ")
        assert said in line
        assert len(line) < 300
        assert not server.connections
        assert server.bound[0].connections_count == 0
        assert not engine.links


@pytest.mark.parametrize("data", [b"", request()[:-2], b"GET"], ids=["nothing", "half", "a word"])
async def test_a_handshake_that_does_not_end_is_ended(data: bytes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    async with running(RelayEngine(), WS, grace_s=0, connect_timeout_s=7) as server:
        ours = await admit(server)
        began = trio.current_time()
        with caplog.at_level(logging.INFO, "broker"):
            await ours.send_all(data)
            await wait_until_gone(server)
        assert trio.current_time() - began == 7
        assert [record.getMessage() for record in caplog.records] == ["WebSocket handshake timed out with 192.0.2.7:50123"]


async def test_a_peer_that_leaves_in_its_handshake(caplog: pytest.LogCaptureFixture) -> None:
    async with running(RelayEngine(), WS, grace_s=0) as server:
        ours = await admit(server)
        await ours.send_all(b"GET /mq")
        with caplog.at_level(logging.INFO, "broker"):
            await ours.aclose()
            await wait_all_tasks_blocked()
        assert [record.getMessage() for record in caplog.records] == ["WebSocket handshake failed with 192.0.2.7:50123: it left"]
        assert not server.connections


async def test_handshake_and_connect_share_one_timeout(autojump_clock: MockClock) -> None:
    (bound,) = await bind_all([WS])
    bound.connections_count += 1
    ours, theirs = memory_stream_pair()
    async with open_broker(connect_timeout_s=10, close_timeout_s=0.5) as broker:
        began = trio.current_time()
        broker._server.admit(StreamTransport(theirs), "x", bound.url, bound)
        await trio.sleep(6)
        peer = Peer(ours)
        await peer.handshake()
        closing = await peer.receive()
        assert closing is not None
        assert closing[0] == CLOSE
        assert trio.current_time() - began == 10
        await ours.aclose()
    bound.close()


async def test_shutdown_during_a_handshake() -> None:
    async with running(RelayEngine(), WS, grace_s=0) as server:
        ours = await admit(server)
        server.begin_shutdown(0)
        await server.wait_ended()
        assert await receive_all(ours) == b""


# ---- over real sockets -----------------------------------------------------------------------------------------------------


async def test_urls_tell_the_path_and_the_scheme() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    async with open_broker(listeners=[WS, Listener(port=0, protocol="websocket", path="/", tls=context), "ws://127.0.0.1:0/a/b"]) as broker:
        first, second, third = broker.urls
        assert first.startswith("ws://127.0.0.1:")
        assert first.endswith("/mqtt")
        assert second.startswith("wss://127.0.0.1:")
        assert second.endswith("/")
        assert third.endswith("/a/b")


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_our_client_and_our_broker(secure: bool) -> None:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    listener = Listener(port=0, protocol="websocket", tls=server if secure else None)
    async with (
        open_broker(listeners=[listener]) as broker,
        connect(broker.urls[0], tls=client if secure else None, reconnect=None) as one,
        one.subscribe("t", qos=2) as subscription,
    ):
        data = os.urandom(3_000_000)
        for qos in (0, 1, 2):
            await one.publish("t", data, qos=qos)
            message = await subscription.receive()
            assert (message.qos, message.payload) == (qos, data)


@pytest.mark.parametrize("ends", ["close", "TLS", "TCP", "reset"])
async def test_every_end_of_a_client_by_tls(ends: str, caplog: pytest.LogCaptureFixture) -> None:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with open_broker(listeners=[Listener(port=0, protocol="websocket", tls=server)]) as broker:
        port = int(broker.urls[0].split(":")[2].partition("/")[0])
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        peer = Peer(trio.SSLStream(plain, client, server_hostname="127.0.0.1", https_compatible=True))
        await peer.handshake()
        await peer.send(encode(Connect("c"), 5))
        assert (await peer.receive()) is not None
        assert broker.statistics()["clients_connected"] == 1
        if ends == "close":
            await peer.send(b"\x03\xe8", CLOSE)
            answer = await peer.receive()
            assert answer is not None
            assert answer[0] == CLOSE
        elif ends == "reset":
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if ends == "TLS":
            await peer.stream.aclose()
        else:
            await plain.aclose()
        while broker._server.connections:
            await trio.lowlevel.checkpoint()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@unix_only
async def test_a_unix_socket_behind_a_proxy(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "ws.sock")
    async with open_broker(listeners=[Listener(unix=path, protocol="websocket")]) as broker:
        assert broker.urls == (f"unix://{path}",)
        stream = await trio.open_unix_socket(path)
        assert (await Peer(stream).handshake()).startswith(b"HTTP/1.1 101 ")
        await stream.aclose()


# ---- the client's handshake ------------------------------------------------------------------------------------------------

Serve = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def answering(serve: Serve) -> AsyncIterator[str]:
    """The URL of a server that talks to each client as told."""

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await serve(Peer(stream, is_client=False))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/deep/path"
        nursery.cancel_scope.cancel()


async def test_what_our_client_asks() -> None:
    asked = b""

    async def serve(peer: Peer) -> None:
        nonlocal asked
        asked = await peer.head()

    async with answering(serve) as url:
        with pytest.raises(ConnectError):
            async with connect(url + "?keep_alive_s=5", headers={"Authorization": "Bearer x y"}, reconnect=None):
                pass
        lines = asked.decode().lower().split("\r\n")
        assert lines[0] == "get /deep/path http/1.1"
        assert f"host: {url.removeprefix('ws://').partition('/')[0]}" in lines
        assert "sec-websocket-protocol: mqtt" in lines
        assert "authorization: bearer x y" in lines


FAILING = {
    "no subprotocol": (lambda asked: response(asked, None), "did not choose the subprotocol mqtt"),
    "another subprotocol": (lambda asked: response(asked, "chat"), "unrecognized subprotocol chat"),
    "a wrong key": (lambda asked: response(b"sec-websocket-key: x\r\n"), "Bad accept token"),
    "401": (lambda asked: b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 100000\r\n\r\nabc", "the answer was HTTP status 401"),
    "404": (lambda asked: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404; is MQTT at another path there?"),
    "302": (lambda asked: b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "the answer was HTTP status 302"),
    "200": (lambda asked: b"HTTP/1.1 200 OK\r\n\r\n<html>", "the answer was HTTP status 200"),
    "garbage": (lambda asked: b"\x20\x03\x00\x00\x00\r\n\r\n", "Bad HTTP message"),
    "an extension": (lambda asked: response(asked).replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: zip\r\n\r\n"), "unrecognized extension zip"),
    "bytes that are not ASCII": (lambda asked: response(asked).replace(b": mqtt", b": \xff"), "a header is not ASCII"),
    "nothing": (lambda asked: b"", "does it speak WebSocket here?"),
}


@pytest.mark.parametrize(("answer", "said"), FAILING.values(), ids=FAILING)
async def test_a_failed_handshake_is_a_connect_error_of_one_line(answer: Callable[[bytes], bytes], said: str) -> None:
    async def serve(peer: Peer) -> None:
        await peer.stream.send_all(answer(await peer.head()))
        if answer(b"sec-websocket-key: x\r\n"):  # and keeps the connection
            await peer.receive()

    async with answering(serve) as url:
        with pytest.raises(ConnectError) as caught:
            async with connect(url, reconnect=None):
                pass
        assert said in str(caught.value)
        assert str(caught.value).startswith(f"{url}: WebSocket handshake failed: ")
        assert "\n" not in str(caught.value)


async def test_a_server_that_never_answers_ends_the_attempt() -> None:
    async def serve(peer: Peer) -> None:
        await trio.sleep_forever()

    async with answering(serve) as url:
        with pytest.raises(ConnectError, match=r"no connection within 0\.05 s"):
            async with connect(url, connect_timeout_s=0.05, reconnect=None):
                pass


@asynccontextmanager
async def upgraded() -> AsyncIterator[tuple[websocket.WebSocketStream, Peer]]:
    """Our client's stream, and a server by hand at the other end of memory."""
    ours, theirs = memory_stream_pair(1_000_000)
    peer = Peer(theirs, is_client=False)
    streams: list[websocket.WebSocketStream] = []
    async with trio.open_nursery() as nursery:

        async def dial() -> None:
            streams.append(await websocket.upgrade(nursery, ours, "host", "/mqtt"))

        async with trio.open_nursery() as dialling:
            dialling.start_soon(dial)
            await theirs.send_all(response(await peer.head()))
        yield streams[0], peer
        await trio.aclose_forcefully(streams[0])


async def test_the_clients_stream() -> None:
    async with upgraded() as (stream, peer):
        await stream.send_all(b"")
        await stream.send_all(memoryview(b"hello"))
        assert await peer.receive() == (BINARY, b"hello")
        await peer.send(b"abcdef")
        await peer.send(b"gh", fin=False)
        found = [await stream.receive_some(5)]
        while sum(map(len, found)) < 8:
            found.append(await stream.receive_some(5))
        assert b"".join(found) == b"abcdefgh"
        assert found[0] == b"abcde"
        with pytest.raises(ValueError):
            await stream.receive_some(0)
        await peer.send((1000).to_bytes(2), CLOSE)
        assert await stream.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"too late")
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_the_client_refuses_text() -> None:
    async with upgraded() as (stream, peer), trio.open_nursery() as nursery:

        async def read() -> None:
            assert await stream.receive_some() == b"good"
            with pytest.raises(trio.BrokenResourceError, match="a text message came"):
                await stream.receive_some()

        nursery.start_soon(read)
        await peer.stream.send_all(frame(b"good", masked=False) + frame(b"bad", TEXT, masked=False))
        closing = await peer.receive()
        assert closing is not None
        assert (closing[0], closing[1][:2]) == (CLOSE, (1003).to_bytes(2))
        await peer.send(closing[1][:2], CLOSE)


async def test_a_server_that_breaks_the_rules_is_left(autojump_clock: MockClock) -> None:
    async with upgraded() as (stream, peer):
        await peer.stream.send_all(frame(b"x", masked=True) + bytes(500_000))
        with pytest.raises(trio.BrokenResourceError, match="masked"):
            await stream.receive_some()
        assert await peer.stream.receive_some()  # the close frame


async def test_closing_is_cut_short_when_cancelled() -> None:
    async with upgraded() as (stream, peer):
        await trio.aclose_forcefully(stream)
        assert await receive_all(peer.stream) == b""


@pytest.mark.parametrize("headers", [{"X Y": "z"}, {"X": "a\r\nY: b"}, {"X": "ä"}, {"": "x"}, {"Host": "x"}, {"sec-websocket-key": "x"}])
def test_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="the header"):
        connect("ws://localhost/", headers=headers)


def test_headers_need_a_websocket() -> None:
    with pytest.raises(ValueError, match="ws://"):
        connect("mqtt://localhost", headers={"X": "y"})


async def test_port_of_names_the_port() -> None:
    async with running(RelayEngine(), WS) as server:
        assert server.bound[0].url == f"ws://127.0.0.1:{port_of(server)}/mqtt"
