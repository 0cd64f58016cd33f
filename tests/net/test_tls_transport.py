"""TLS without a stream: what is counted as sent, what comes in one read, every way that either side can end or misbehave."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import socket
import ssl
from subprocess import PIPE, STDOUT
from typing import Any, cast

import pytest
import trio
import trustme
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.core.outbox import Outbox
from broker.core.waiting import Account
from broker.net.listener import Listener
from broker.net.tls_transport import CHUNK_BYTES, TlsTransport
from tests.conftest import find_program
from tests.net.relay import RelayEngine, dial, port_of, receive_all, running, wait_until_gone
from tests.systems import quick_system_calls

MEGABYTES = random.Random(1).randbytes(4_000_000)


class Contexts:
    """Both sides', with a certificate for localhost."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.server)
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)
        self.client_12 = ssl.create_default_context()
        authority.configure_trust(self.client_12)
        self.client_12.maximum_version = ssl.TLSVersion.TLSv1_2

    def of(self, version: str) -> ssl.SSLContext:
        return self.client if version == "1.3" else self.client_12


CONTEXTS = Contexts()
both_versions = pytest.mark.parametrize("version", ["1.3", "1.2"])


class Peer:
    """A client with its own hands on each record: `put` encrypts, `take` decrypts, and the test carries the bytes."""

    def __init__(self, version: str = "1.3") -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = CONTEXTS.of(version).wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.ended = False

    async def open(self, stream: trio.SocketStream) -> None:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                break
            await stream.send_all(self.outgoing.read())
            self.incoming.write(await stream.receive_some())
        await stream.send_all(self.outgoing.read())

    def put(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def goodbye(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    def take(self, ciphertext: bytes) -> bytes:
        self.incoming.write(ciphertext)
        found = bytearray()
        try:
            while part := self.tls.read(100_000):
                found += part
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return bytes(found)

    async def receive(self, stream: trio.SocketStream, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            data = await stream.receive_some()
            assert data, f"the stream ended after {bytes(found)!r}"
            found += self.take(data)
        return bytes(found)


def listener(**settings: Any) -> Listener:
    return Listener(port=0, tls=CONTEXTS.server, **settings)


@contextlib.asynccontextmanager
async def peer_of(server: Any, version: str = "1.3", receive_buffer_bytes: int = 0) -> Any:
    stream, peer = await dial(server, receive_buffer_bytes), Peer(version)
    await peer.open(stream)
    yield stream, peer


# ---- what is sent, and what counts as sent -------------------------------------------------------------------------------


class Kernel:
    """A socket that takes as much as it is told to."""

    def __init__(self) -> None:
        self.room = 0
        self.taken = bytearray()
        self.came = bytearray()

    def setblocking(self, flag: bool) -> None: ...

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes | memoryview) -> int:
        count = min(self.room, len(data))
        self.room -= count
        self.taken += data[:count]
        if not count:
            raise BlockingIOError
        return count


def opened(version: str = "1.3") -> tuple[TlsTransport, Kernel, Peer]:
    """A transport whose handshake is done, without a byte having crossed a real socket."""
    kernel, peer = Kernel(), Peer(version)
    transport = TlsTransport(cast("socket.socket", kernel), CONTEXTS.server)
    for _ in range(6):
        for side in (peer.tls, transport._tls):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        transport._incoming.write(peer.outgoing.read())
        peer.incoming.write(transport._outgoing.read())
    peer.take(b"")
    return transport, kernel, peer


@given(st.lists(st.one_of(st.integers(1, 200_000), st.tuples(st.integers(0, 100_000))), max_size=30), st.sampled_from(["1.3", "1.2"]))
def test_nothing_counts_as_sent_before_the_kernel_has_it(steps: list[int | tuple[int]], version: str) -> None:
    """Numbers are frames that the core commits, (numbers) what the kernel has room for; in between is what a connection does."""
    transport, kernel, peer = opened(version)
    outbox = Outbox(Account())
    committed = bytearray()

    def flush() -> None:
        while data := outbox.data_to_send(262_144):
            count = transport.send_nowait(data)
            if count:
                outbox.bytes_sent(count)
            if count < len(data):
                return

    for step in steps:
        if isinstance(step, int):
            frames = MEGABYTES[:step]
            committed += frames
            outbox.append(frames)
        else:
            kernel.room += step[0]
        flush()
        # The kernel has at least as much ciphertext as we say it has text, and what is here beside the outbox is bounded.
        assert outbox.sent_bytes_total <= len(kernel.taken)
        assert len(transport._unsent) <= CHUNK_BYTES + 1000
        assert outbox.committed_bytes or not transport._unsent
    kernel.room = 1 << 30
    flush()
    assert outbox.committed_bytes == 0
    assert peer.take(bytes(kernel.taken)) == committed


def test_a_full_kernel_takes_nothing_and_encrypts_once() -> None:
    transport, kernel, peer = opened()
    assert [transport.send_nowait(b"x" * 100) for _ in range(3)] == [0, 0, 0]
    kernel.room = 50
    assert transport.send_nowait(b"x" * 100) == 28  # 72 bytes of ciphertext are left, so at most so many of text
    kernel.room = 1000
    assert transport.send_nowait(b"x" * 72) == 72
    assert peer.take(bytes(kernel.taken)) == b"x" * 100


@both_versions
async def test_partial_writes_arrive_whole_and_in_order(version: str) -> None:
    engine = RelayEngine()
    async with running(engine, listener(send_buffer_bytes=4096)) as server, peer_of(server, version, 4096) as (stream, peer):
        await wait_all_tasks_blocked()
        engine.send(engine.links[0], MEGABYTES)
        server.flush()
        assert len(server.writing) == 1
        assert await peer.receive(stream, len(MEGABYTES)) == MEGABYTES
        await wait_all_tasks_blocked()
        assert not server.writing
        engine.send(engine.links[0], b"again")
        server.flush()
        assert await peer.receive(stream, 5) == b"again"


async def test_what_is_sent_needs_no_writer_task() -> None:
    engine = RelayEngine()
    async with running(engine, listener()) as server, peer_of(server) as (stream, peer):
        await wait_all_tasks_blocked()
        engine.send(engine.links[0], b"hello")
        server.flush()
        assert not server.writing
        assert not engine.links[0].out
        assert await peer.receive(stream, 5) == b"hello"


# ---- what comes ----------------------------------------------------------------------------------------------------------


@both_versions
async def test_any_cut_of_the_ciphertext_gives_the_same_bytes(version: str) -> None:
    engine = RelayEngine(relays=False)
    chance = random.Random(version)
    async with running(engine, listener()) as server, peer_of(server, version) as (stream, peer):
        sent = b""
        for size in (1, 70, 16_384, 16_385, 100_000, 3):
            sent += MEGABYTES[:size]
            ciphertext = peer.put(MEGABYTES[:size])
            while ciphertext:
                cut = chance.choice([1, 5, 400, 17_000, 100_000])
                await stream.send_all(ciphertext[:cut])
                ciphertext = ciphertext[cut:]
                if chance.random() < 0.3:
                    await wait_all_tasks_blocked()
        await stream.send_all(peer.goodbye())
        assert peer.take(await receive_all(stream)) == b""
        assert engine.received == sent


def test_one_read_of_many_records_is_handed_on_at_once() -> None:
    transport, _, peer = opened()
    ciphertext = b"".join(peer.put(b"message %d " % number) for number in range(500))
    assert transport._decrypt(ciphertext) == b"".join(b"message %d " % number for number in range(500))


async def test_data_that_comes_with_the_end_of_the_handshake_is_not_left_lying() -> None:
    engine = RelayEngine()
    async with running(engine, listener()) as server:
        stream, peer = await dial(server), Peer()
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
                break
            await stream.send_all(peer.outgoing.read())
            peer.incoming.write(await stream.receive_some())
        peer.tls.write(b"at once")
        await stream.send_all(peer.outgoing.read())  # Finished, and this
        assert await peer.receive(stream, 7) == b"at once"


# ---- ending --------------------------------------------------------------------------------------------------------------


@both_versions
async def test_a_half_closed_peer_gets_what_was_queued_and_our_close_notify(version: str) -> None:
    engine = RelayEngine()
    async with running(engine, listener(send_buffer_bytes=4096)) as server, peer_of(server, version, 4096) as (stream, peer):
        await stream.send_all(peer.put(MEGABYTES[:100_000]) + peer.goodbye())
        await stream.send_eof()
        assert peer.take(await receive_all(stream)) == MEGABYTES[:100_000]
        assert peer.ended
        assert len(engine.detached) == 1


@both_versions
async def test_we_say_close_notify_and_wait_for_the_peer(version: str) -> None:
    engine = RelayEngine()
    async with running(engine, listener()) as server, peer_of(server, version) as (stream, peer):
        await stream.send_all(peer.put(b"!close"))
        # More than one read, still under way when we close: unread, it would make the kernel send RST.
        await stream.send_all(peer.put(MEGABYTES[:300_000]))
        assert peer.take(await receive_all(stream)) == b"bye"
        assert peer.ended
        assert len(server.connections) == 1  # the peer may still speak, though nobody listens
        await stream.send_all(peer.put(b"late") + peer.goodbye())
        await stream.send_eof()
        while server.connections:
            await trio.lowlevel.checkpoint()
        assert engine.received == b""


@quick_system_calls
async def test_a_close_notify_that_the_kernel_does_not_take_is_the_writers() -> None:
    engine = RelayEngine()
    async with running(engine, listener(send_buffer_bytes=4096)) as server, peer_of(server, receive_buffer_bytes=4096) as (stream, peer):
        await wait_all_tasks_blocked()
        engine.close(engine.links[0], MEGABYTES)
        server.flush()
        assert peer.take(await receive_all(stream)) == MEGABYTES
        assert peer.ended


async def test_a_peer_that_does_not_close_after_us_is_given_up(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.2  # bytes go through the kernel
    engine = RelayEngine()
    async with running(engine, listener(), close_timeout_s=30) as server, peer_of(server) as (stream, peer):
        await stream.send_all(peer.put(b"!close"))
        assert peer.take(await receive_all(stream)) == b"bye"
        began = trio.current_time()
        await wait_until_gone(server)
        assert 28 <= trio.current_time() - began <= 32


@pytest.mark.parametrize("how", ["FIN", "FIN inside a record", "nothing but close_notify"])
async def test_every_end_of_the_stream_is_its_end(how: str) -> None:
    engine = RelayEngine()
    async with running(engine, listener()) as server, peer_of(server) as (stream, peer):
        await stream.send_all(peer.put(b"last"))
        assert await peer.receive(stream, 4) == b"last"
        if how == "nothing but close_notify":
            await stream.send_all(peer.goodbye())
        else:
            await stream.send_all(peer.put(b"half a record")[:20] if how == "FIN inside a record" else b"")
            await stream.send_eof()
        assert peer.take(await receive_all(stream)) == b""
        assert peer.ended
        assert len(engine.detached) == 1


async def test_good_bytes_before_a_broken_record_count(caplog: pytest.LogCaptureFixture) -> None:
    engine = RelayEngine(relays=False)
    async with running(engine, listener()) as server, peer_of(server) as (stream, peer):
        broken = bytearray(peer.put(b"one") + peer.put(b"two"))
        broken[-1] ^= 1
        await stream.send_all(bytes(broken))
        answer = await receive_all(stream)
        assert answer[0] == 0x17  # an alert, encrypted
        with pytest.raises(ssl.SSLError, match="(?i)bad[ _]record[ _]mac"):
            peer.take(answer)
        assert engine.received == b"one"
        assert len(engine.detached) == 1


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=8), st.integers(0, 1 << 30), st.integers(1, 255), st.sampled_from(["1.3", "1.2"]))
def test_a_changed_byte_gives_a_whole_prefix_and_a_fault_or_waits_for_more(sizes: list[int], place: int, change: int, version: str) -> None:
    transport, kernel, peer = opened(version)
    kernel.room = 1 << 30
    texts = [bytes([number]) * size for number, size in enumerate(sizes)]
    ciphertext = bytearray(b"".join(map(peer.put, texts)))
    ciphertext[place % len(ciphertext)] ^= change
    found = b"".join(transport._decrypt(bytes(ciphertext[start : start + 65_536])) for start in range(0, len(ciphertext), 65_536))
    whole = b"".join(texts)
    assert whole.startswith(found)
    assert len(found) < len(whole)
    if not transport._fault:  # a length that was made longer: the rest has yet to come
        transport._decrypt(bytes(20_000))
    assert transport._fault.startswith("TLS: ")
    assert transport._decrypt(peer.put(b"later")) == b""


# ---- handshakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00", "the other end does not speak TLS"),
        (b"GET / HTTP/1.1\r\n\r\n", "the other end speaks HTTP, not TLS"),
        (bytes(range(256)) * 400, "the other end does not speak TLS"),
        (b"\x16\x03\x01", "it left"),
        (b"", "it left"),
    ],
    ids=["MQTT", "HTTP", "bytes", "half a ClientHello", "nothing"],
)
async def test_what_is_no_handshake_ends_with_a_line_in_the_log(data: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = RelayEngine()
    async with running(engine, listener()) as server, peer_of(server) as (good, peer):
        with caplog.at_level(logging.INFO, "broker"):
            stream = await dial(server)
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                await stream.send_eof()
                await receive_all(stream)
            while len(server.connections) > 1:
                await trio.lowlevel.checkpoint()
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("TLS handshake failed with 127.0.0.1:")
        assert line.endswith(f": {said}")
        await good.send_all(peer.put(b"alive"))
        assert await peer.receive(good, 5) == b"alive"


async def test_a_handshake_has_its_time(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.2
    async with running(RelayEngine(), listener(), connect_timeout_s=10) as server:
        with caplog.at_level(logging.INFO, "broker"):
            stream, peer = await dial(server), Peer()
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await stream.send_all(peer.outgoing.read()[:100])
            assert await receive_all(stream) == b""
        assert "TLS handshake timed out with 127.0.0.1:" in caplog.text


# ---- messages of TLS itself after the handshake ----------------------------------------------------------------------------


async def talk(server: Any, *words: str, keys: bytes, said: bytes) -> None:
    """OpenSSL's client, told by `keys` to do what Python's cannot; then it sends bytes and gets them back."""
    openssl = find_program("openssl", "openssl")
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{port_of(server)}", *words]
    async with trio.open_nursery() as nursery:
        run = functools.partial(trio.run_process, command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, check=False)
        process = await nursery.start(run)
        printed = b""

        async def wait_for(text: bytes) -> None:
            nonlocal printed
            while text not in printed:
                part = await process.stdout.receive_some()
                assert part, printed
                printed += part

        await wait_for(b"Verify return code")
        for _ in range(3):
            printed = b""
            await process.stdin.send_all(keys)
            await wait_for(said)
            await process.stdin.send_all(b"hello hello\n")
            await wait_for(b"hello hello\n")
        await process.stdin.aclose()
        async for _ in process.stdout:
            pass


@pytest.mark.parametrize("keys", [b"K\n", b"k\n"], ids=["and ask for ours", "its own"])
async def test_a_client_may_change_its_keys(keys: bytes) -> None:
    async with running(RelayEngine(), listener()) as server:
        await talk(server, "-tls1_3", keys=keys, said=b"KEYUPDATE")
        while server.connections:
            await trio.lowlevel.checkpoint()


async def test_a_client_that_wants_to_renegotiate_ends_its_own_connection() -> None:
    openssl = find_program("openssl", "openssl")
    async with running(RelayEngine(), listener()) as server, peer_of(server) as (stream, peer):
        command = [openssl, "s_client", "-connect", f"127.0.0.1:{port_of(server)}", "-tls1_2"]
        done = await trio.run_process(command, stdin=b"R\n", capture_stdout=True, capture_stderr=True, check=False)
        assert b"RENEGOTIATING" in done.stdout + done.stderr
        while len(server.connections) > 1:
            await trio.lowlevel.checkpoint()
        await stream.send_all(peer.put(b"alive"))
        assert await peer.receive(stream, 5) == b"alive"


def test_a_peer_that_asks_for_answers_and_reads_none_is_given_up() -> None:
    transport, kernel, _ = opened()
    transport._unsent = os.urandom(70_000)
    transport._outgoing.write(b"an answer")
    assert transport._decrypt(b"") == b""
    assert transport._fault == "TLS: it asks for more answers than it reads"
    assert kernel.taken == b""
