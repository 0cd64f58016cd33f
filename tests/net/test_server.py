"""The server as a whole: accepting, running out of descriptors, time, authentication, and how it ends."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.config import Config
from broker.net.authentication import ConnectRequest
from broker.net.listener import Listener
from broker.net.server import IN_A_ROW_COUNT_MIN
from broker.net.transport import SocketTransport, StreamTransport
from broker.opening import open_broker
from broker.reasons import ReasonCode
from broker.wire.codec import encode
from broker.wire.packets import Connect
from tests.net.relay import RelayEngine, attach, dial, port_of, receive_all, receive_exactly, running

# ---- accepting -----------------------------------------------------------------------------------------------------------


async def test_out_of_descriptors_pauses_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    engine = RelayEngine()
    calls = 0
    real_accept = socket.socket.accept

    def accept(self: socket.socket) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 20:
            raise OSError(errno.EMFILE, "too many open files")
        return real_accept(self)

    async with running(engine) as server:
        monkeypatch.setattr(socket.socket, "accept", accept)
        with caplog.at_level(logging.WARNING, "broker"):
            peer = await dial(server)
            began = trio.current_time()
            await peer.send_all(b"hello")
            assert await receive_exactly(peer, 5) == b"hello"
        assert calls >= 21  # neither dead nor ...
        assert trio.current_time() - began > 10  # ... spinning: 0.1, 0.2, 0.4, 0.8, then a second each
        warnings = [record for record in caplog.records if "cannot accept" in record.message]
        assert 1 <= len(warnings) <= 3
        assert "too many open files" in warnings[0].message
        assert server.accept_errors_count == 20


async def test_a_closed_connection_ends_the_pause(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    engine = RelayEngine()
    real_accept = socket.socket.accept
    full = True

    def accept(self: socket.socket) -> Any:
        if full:
            raise OSError(errno.EMFILE, "too many open files")
        return real_accept(self)

    async with running(engine) as server:
        first = await dial(server)
        await first.send_all(b"x")
        await receive_exactly(first, 1)
        monkeypatch.setattr(socket.socket, "accept", accept)
        second = await dial(server)
        await trio.sleep(0.05)
        full = False
        await first.aclose()
        await second.send_all(b"y")
        assert await receive_exactly(second, 1) == b"y"
        assert trio.current_time() < 0.2


CHILD = """
import logging, resource, sys
import trio
from broker import open_broker

async def main():
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as hub:
        print(hub.urls[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        print(hub.statistics()["accept_errors_count"], hub.statistics()["accepted_count"], flush=True)

logging.basicConfig(level=logging.WARNING, format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
trio.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_NOFILE")
def test_a_real_limit_of_descriptors() -> None:
    """The system's own EMFILE, in a process that may open 32: those who are in are served, those who wait come in when others leave."""
    connect = encode(Connect("", 5), 5)
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        port = int(child.stdout.readline().rpartition(":")[2])
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(40)]  # the kernel takes them all
            for client in clients:
                client.sendall(connect)
            assert "too many open files" in child.stderr.readline()
            served, waiting = clients[0], clients[-1]
            assert served.recv(100)[0] == 0x20
            served.sendall(b"\xc0\x00")
            assert served.recv(100) == b"\xd0\x00"  # PINGRESP: the loop turns
            for client in clients[:30]:
                client.close()
            assert waiting.recv(100)[0] == 0x20
        said, warnings = child.communicate("\n")
        errors, accepted = map(int, said.split())
        assert accepted == 40
        assert 1 <= errors < 1000  # a pause each, and each longer; a loop that spins makes a hundred thousand a second
        assert warnings.count("\n") <= 10
        assert child.returncode == 0


async def test_a_connection_that_gave_up_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real_accept = socket.socket.accept
    codes = [errno.ECONNABORTED, errno.EPROTO]

    def accept(self: socket.socket) -> Any:
        if codes:
            raise OSError(codes.pop(), "gone")
        return real_accept(self)

    async with running(RelayEngine()) as server:
        monkeypatch.setattr(socket.socket, "accept", accept)
        peer = await dial(server)
        await peer.send_all(b"x")
        assert await receive_exactly(peer, 1) == b"x"


async def test_connections_count_max(caplog: pytest.LogCaptureFixture) -> None:
    async with running(RelayEngine(), Listener(port=0, connections_count_max=1)) as server:
        first = await dial(server)
        await first.send_all(b"x")
        await receive_exactly(first, 1)
        second = await dial(server)
        assert await receive_all(second) == b""
        assert "connections_count_max" in caplog.text
        assert server.refused_count == 1
        await first.aclose()
        while server.connections:
            await trio.lowlevel.checkpoint()
        third = await dial(server)
        await third.send_all(b"y")
        assert await receive_exactly(third, 1) == b"y"


# ---- TLS -----------------------------------------------------------------------------------------------------------------


async def test_tls_and_a_handshake_that_never_comes(autojump_clock: MockClock) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    autojump_clock.autojump_threshold = 0.2  # the handshake goes through the kernel
    async with running(RelayEngine(), Listener(port=0, tls=context), connect_timeout_s=10) as server:
        assert server.bound[0].url.startswith("mqtts://")
        silent = await dial(server)
        stream = trio.SSLStream(await dial(server), client, server_hostname="localhost", https_compatible=True)
        await stream.send_all(b"hello")
        assert await receive_exactly(stream, 5) == b"hello"
        await stream.send_all(b"!close")
        assert await receive_all(stream) == b"bye"
        await stream.aclose()
        assert await receive_all(silent) == b""
        assert 10 <= trio.current_time() <= 16


# ---- time ----------------------------------------------------------------------------------------------------------------


async def test_the_timer_wakes_when_the_core_wants_it_even_if_that_changes(autojump_clock: MockClock) -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        engine.deadline = 100.0
        server.flush()
        await trio.sleep(1)
        engine.deadline = 5.0
        server.flush()
        await trio.sleep(10)
        assert engine.ticks == [5.0]
        engine.deadline = 50.0
        server.flush()
        await trio.sleep(100)
        assert engine.ticks == [5.0, 50.0]


# ---- sending -------------------------------------------------------------------------------------------------------------


async def test_many_are_served_in_a_row_whatever_happens_to_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One is at fault, one is gone, the others take nothing at once; what is made ready meanwhile, as by an embedder's log handler, comes behind."""
    engine = RelayEngine()
    async with running(engine) as server:
        peers = [await attach(server) for _ in range(IN_A_ROW_COUNT_MIN + 2)]
        sound, faulty, gone = engine.links[:3]

        def send_nowait(self: StreamTransport, data: bytes | memoryview) -> int:
            if self is faulty.transport.transport:  # type: ignore[attr-defined]  # the Connection's
                raise KeyError("a fault on purpose")
            if self is gone.transport.transport:  # type: ignore[attr-defined]
                raise BrokenPipeError
            return 0

        monkeypatch.setattr(StreamTransport, "send_nowait", send_nowait)

        class Publishes(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                engine.send(sound, b"second")
                server.flush()

        handler = Publishes(logging.ERROR)
        logging.getLogger("broker").addHandler(handler)
        try:
            for link in [faulty, sound, *engine.links[2:]]:
                engine.send(link, b"first ")
            server.flush()
        finally:
            logging.getLogger("broker").removeHandler(handler)
        assert await receive_exactly(peers[0], 12) == b"first second"
        assert await receive_all(peers[1]) == b""
        assert await receive_all(peers[2]) == b""
        for peer in peers[3:]:
            assert await receive_exactly(peer, 6) == b"first "
        assert "a fault on purpose" in caplog.text


# ---- ending --------------------------------------------------------------------------------------------------------------


async def test_goodbye_reaches_everybody() -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        one, other = await dial(server), await attach(server)
        while len(engine.links) < 2:
            await trio.lowlevel.checkpoint()
        server.begin_shutdown(5)
        for peer in (one, other):
            assert await receive_all(peer) == b"shutdown"
            await trio.aclose_forcefully(peer)
        await server.wait_ended()
        with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", port_of(server))):
            pass


@pytest.mark.parametrize("grace_s", [0, 3])
async def test_a_peer_that_never_reads_ends_with_the_grace(grace_s: float, autojump_clock: MockClock) -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        await attach(server, 1)
        began = trio.current_time()
        server.begin_shutdown(grace_s)
        await server.wait_ended()
        assert trio.current_time() - began == grace_s
        assert not server.connections


async def test_without_any_grace_there_is_still_a_goodbye() -> None:
    engine = RelayEngine()
    async with running(engine) as server:
        peer = await dial(server)
        await peer.send_all(b"x")
        await receive_exactly(peer, 1)
        server.begin_shutdown(0)
        await server.wait_ended()
        assert await receive_all(peer) == b"shutdown"


async def test_a_second_shutdown_may_only_shorten_the_grace(autojump_clock: MockClock) -> None:
    async with running(RelayEngine()) as server:
        await attach(server, 1)
        server.begin_shutdown(4)
        server.begin_shutdown(100)
        await trio.sleep(1)
        server.begin_shutdown(1)
        await server.wait_ended()
        assert trio.current_time() == 2


async def test_cancelled_server_says_goodbye_too(autojump_clock: MockClock) -> None:
    engine = RelayEngine()
    with trio.CancelScope() as scope:
        async with running(engine) as server:
            peer = await attach(server)
            tasks = trio.lowlevel.current_statistics().tasks_living
            assert tasks > 0
            scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                server.begin_shutdown(5)
                assert await receive_all(peer) == b"shutdown"
    assert scope.cancelled_caught
    assert not server.connections


# ---- authentication ------------------------------------------------------------------------------------------------------


async def verdict_of(authenticate: Any, *sends: bytes, **limits: Any) -> tuple[RelayEngine, bytes]:
    """What the engine was told, and what the client got, after !auth."""
    engine = RelayEngine()
    async with running(engine, authenticate=authenticate, **limits) as server:
        peer = await attach(server)
        await peer.send_all(b"!auth")
        got = b""
        for data in sends:
            got += await peer.receive_some()
            await peer.send_all(data)
        while not engine.verdicts:
            got += await peer.receive_some()
    return engine, got


async def test_hook_admits_by_name() -> None:
    asked: list[ConnectRequest] = []

    async def authenticate(request: ConnectRequest) -> str | None:
        asked.append(request)
        return "alice"

    engine, _ = await verdict_of(authenticate)
    assert engine.verdicts == [("alice", None)]
    (request,) = asked
    assert (request.client_id, request.username, request.password, request.peer) == ("someone", "user", b"secret", "in-process")
    assert "secret" not in repr(request)


async def test_hook_challenges() -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        answer = await request.challenge(b"who?")
        again = await request.challenge(b"sure?")
        return (answer + again).decode()

    engine, got = await verdict_of(authenticate, b"me", b"yes")
    assert engine.verdicts == [("meyes", None)]
    assert got.startswith(b"who?sure?")


async def test_a_hook_that_refuses_fails_or_hangs_never_admits(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(request: ConnectRequest) -> str | None:
        return None

    async def fails(request: ConnectRequest) -> str | None:
        raise KeyError(f"no such user, or wrong: {request.password!r} secret")

    async def hangs(request: ConnectRequest) -> str | None:
        await trio.sleep_forever()
        return "never"

    engine, _ = await verdict_of(refuses)
    assert engine.verdicts == [(None, ReasonCode.NOT_AUTHORIZED)]  # the relay's question names a method
    engine, _ = await verdict_of(fails)
    assert engine.verdicts == [(None, ReasonCode.SERVER_UNAVAILABLE)]
    assert "authenticate hook failed" in caplog.text
    assert "KeyError at " in caplog.text  # where, but not what: it has seen the password
    engine, _ = await verdict_of(hangs, connect_timeout_s=4)
    assert engine.verdicts == [(None, ReasonCode.SERVER_UNAVAILABLE)]
    assert trio.current_time() == 4
    assert "secret" not in caplog.text


async def test_a_client_that_leaves_cancels_its_question() -> None:
    cancelled = trio.Event()

    async def authenticate(request: ConnectRequest) -> str | None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        return None

    engine = RelayEngine()
    async with running(engine, authenticate=authenticate) as server:
        peer = await attach(server)
        await peer.send_all(b"!auth")
        await wait_all_tasks_blocked()
        await peer.aclose()
        await cancelled.wait()
    assert engine.verdicts == []


async def test_a_connection_has_the_options_of_its_listener() -> None:
    listener = Listener(port=0, tcp_keepalive_s=90)
    async with running(RelayEngine(), listener, Listener(port=0, nodelay=False)) as server:
        found = []
        for one in server.bound:
            stream = await trio.open_tcp_stream("127.0.0.1", one.socket.getsockname()[1])
            await wait_all_tasks_blocked()
            (connection,) = [connection for connection in server.connections if connection.bound is one]
            assert isinstance(connection.transport, SocketTransport)
            connected = connection.transport.socket
            found.append(
                (
                    connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0,
                    connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0,
                )
            )
            if one.listener is listener and hasattr(socket, "TCP_KEEPIDLE"):
                assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 90
            await stream.aclose()
        assert found == [(True, True), (False, False)]


async def test_a_reload_changes_the_options_of_those_who_come_from_now_on() -> None:
    def config(nodelay: bool, tcp_keepalive_s: float) -> Config:
        return Config(listeners=(Listener(port=0, nodelay=nodelay, tcp_keepalive_s=tcp_keepalive_s),), sys_interval_s=0)

    found = []
    async with open_broker(config(True, 0)) as hub:
        for again in (config(False, 90), config(True, 0), config(True, 0)):
            async with await trio.open_tcp_stream("127.0.0.1", int(hub.urls[0].rpartition(":")[2])):
                await wait_all_tasks_blocked()
                (connection,) = hub._server.connections
                assert isinstance(connection.transport, SocketTransport)
                connected = connection.transport.socket
                options = (socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                found.append(tuple(connected.getsockopt(*option) != 0 for option in options))
            while hub._server.connections:
                await trio.lowlevel.checkpoint()
            assert hub.reload(again) == []
    assert found == [(True, False), (False, True), (True, False)]
