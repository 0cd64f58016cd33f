"""Dialling over real sockets: TCP, Unix and TLS, what a URL means, and each failure in one line that holds no password."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from broker.errors import ConnectError, NotSupported
from broker.net.dial import Target, dial, is_self_connected, parse_url


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("mqtt://host", Target("mqtt", "host", 1883)),
        ("MQTTS://Host", Target("mqtts", "host", 8883)),
        ("mqtt://[::1]:1", Target("mqtt", "::1", 1)),
        ("mqtt://u%40x:p%2F%3A@host/", Target("mqtt", "host", 1883, username="u@x", password="p/:")),
        ("mqtt://:only@host", Target("mqtt", "host", 1883, username="", password="only")),
        ("mqtt://host?client_id=a%20b&keep_alive_s=5", Target("mqtt", "host", 1883, options=(("client_id", "a b"), ("keep_alive_s", "5")))),
        ("wss://host/mqtt", Target("wss", "host", 443, path="/mqtt")),
        ("ws://host", Target("ws", "host", 80, path="/mqtt")),
        ("ws://host/", Target("ws", "host", 80, path="/")),
        ("ws://host/a b/%C3%BC/ü", Target("ws", "host", 80, path="/a%20b/%C3%BC/%C3%BC")),  # as browsers send it
        ("unix:///run/a%20b.sock", Target("unix", path="/run/a b.sock")),
    ],
)
def test_urls(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    ["host", "http://secret@host", "mqtt://u:secret@host/path", "mqtt://u:secret@host:x", "mqtt://u:secret@", "mqtt://secret@h#f", "unix://secret/a"],
)
def test_wrong_urls_are_not_repeated(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_no_password_is_shown() -> None:
    target = parse_url("mqtt://u:secret@[::1]?password=secret")
    assert target.address == "mqtt://[::1]:1883"
    assert "secret" not in repr(target)


async def echo(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(await stream.receive_some())


async def served(nursery: trio.Nursery, wrap: Any = None) -> int:
    """The port of an echo server on loopback."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await echo(stream if wrap is None else wrap(stream))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    nursery.start_soon(trio.serve_listeners, serve, listeners)
    return int(listeners[0].socket.getsockname()[1])


def hangs_up(stream: trio.SocketStream) -> trio.SocketStream:
    stream.socket.shutdown(socket.SHUT_WR)
    return stream


async def says_hello(stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


async def test_tcp() -> None:
    async with trio.open_nursery() as nursery:
        port = await served(nursery)
        stream = await dial(Target("mqtt", "127.0.0.1", port), nodelay=False, bind_address="127.0.0.1")
        assert isinstance(stream, trio.SocketStream)
        assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        await says_hello(stream)
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets on this system")
async def test_unix(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(path)
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listening)])
        await says_hello(await dial(Target("unix", path=path)))
        nursery.cancel_scope.cancel()
    with pytest.raises(ConnectError, match="no such file"):
        await dial(Target("unix", path=path + "x"))


async def test_tls() -> None:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with trio.open_nursery() as nursery:
        port = await served(nursery, lambda stream: trio.SSLStream(stream, server, server_side=True, https_compatible=True))
        await says_hello(await dial(Target("mqtts", "127.0.0.1", port), tls=client))
        with pytest.raises(ConnectError, match="certificate was not accepted"):
            await dial(Target("mqtts", "127.0.0.1", port))
        plain = await served(nursery)
        with pytest.raises(ConnectError, match="TLS failed"):
            await dial(Target("mqtts", "127.0.0.1", plain), tls=client)
        silent = await served(nursery, hangs_up)
        with pytest.raises(ConnectError, match="TLS failed: the other end broke off the handshake; does it speak TLS"):
            await dial(Target("mqtts", "127.0.0.1", silent), tls=client)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", [ssl.SSLEOFError, ssl.SSLZeroReturnError])
async def test_an_end_during_the_handshake_by_whatever_name(kind: type[ssl.SSLError], monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.2, Debian 12's, raises the second where later ones raise the first."""

    async def do_handshake(stream: trio.SSLStream[trio.SocketStream]) -> None:
        raise trio.BrokenResourceError from kind(8, "TLS/SSL connection has been closed (EOF) (_ssl.c:992)")

    monkeypatch.setattr(trio.SSLStream, "do_handshake", do_handshake)
    async with trio.open_nursery() as nursery:
        port = await served(nursery)
        with pytest.raises(ConnectError, match="TLS failed: the other end broke off the handshake; does it speak TLS"):
            await dial(Target("mqtts", "127.0.0.1", port))
        nursery.cancel_scope.cancel()


async def test_failures_in_one_line() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    listening.close()
    with pytest.raises(ConnectError, match=rf"^mqtt://127.0.0.1:{port}: connection refused$"):
        await dial(Target("mqtt", "127.0.0.1", port))
    with pytest.raises(ConnectError, match="host name not found"):
        await dial(Target("mqtt", "no.such.host.invalid", 1883))
    for address in ("192.0.2.1", "::1"):  # nobody's, and of the wrong kind
        with pytest.raises(ConnectError, match=f": cannot connect from {address}: an address of this machine"):
            await dial(Target("mqtt", "127.0.0.1", port), bind_address=address)
    with pytest.raises(NotSupported, match="WebSocket is not spoken here"):  # nobody keeps its reading task
        await dial(Target("ws", "127.0.0.1", port, path="/"))


async def test_a_socket_connected_to_itself_counts_as_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP's simultaneous open, made on purpose: bind a port, then connect to it."""
    alone = trio.socket.socket()
    await alone.bind(("127.0.0.1", 0))
    await alone.connect(alone.getsockname())
    assert is_self_connected(alone)

    async def open_tcp_stream(*args: Any, **options: Any) -> trio.SocketStream:
        return trio.SocketStream(alone)

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)
    with pytest.raises(ConnectError, match="refused"):
        await dial(Target("mqtt", "127.0.0.1", alone.getsockname()[1]))
    assert alone.fileno() == -1
