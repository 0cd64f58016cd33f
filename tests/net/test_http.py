"""Strangers at the page: requests that are none, that are too large or never end, answers that nobody reads. In virtual time, over memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from broker.net.http import HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, LINGER_S, WRITE_TIMEOUT_S, Answer, Reception, Request, serve
from broker.net.memory import memory_stream_pair
from broker.net.transport import StreamTransport
from tests.metrics.visitor import Visitor

LARGE = b"x" * 100_000


async def answer(request: Request) -> Answer:
    if request.path == "/fault":
        raise KeyError("a fault of ours")
    return Answer(200, LARGE if request.path == "/large" else f"{request.method} {request.path} {request.accept}\n".encode())


async def arrived(nursery: trio.Nursery, buffer_bytes: int = 65_536) -> Visitor:
    ours, theirs = memory_stream_pair(buffer_bytes)
    nursery.start_soon(serve, StreamTransport(theirs), "a stranger", Reception(answer))
    return Visitor(ours)


async def test_one_connection_serves_many_requests() -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        for number in range(3):
            reply = await visitor.ask(f"/{number}?and=more", headers={"Accept": "text/plain"})
            assert (reply.status, reply.text) == (200, f"GET /{number} text/plain\n")
            assert reply.headers["content-length"] == str(len(reply.text))
            assert "date" in reply.headers
        await visitor.stream.aclose()


@pytest.mark.parametrize("target", ["/metrics", "/metrics?a=/b", "http://broker:9883/metrics", "HTTPS://broker/metrics?a"])
async def test_a_path_is_found_in_whatever_a_request_may_name(target: str) -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        assert (await visitor.ask(target)).text == "GET /metrics \n"
        await visitor.stream.aclose()


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        assert (await visitor.ask("/", "HEAD")).headers["content-length"] == str(len("HEAD / \n"))
        assert (await visitor.ask("/")).text == "GET / \n"
        await visitor.stream.aclose()


async def test_what_comes_after_head_and_is_no_request_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """It was answered as if it were HEAD too, which is a fault of ours."""
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        assert (await visitor.ask("/", "HEAD")).text == ""
        await visitor.stream.send_all(b"what?\r\n\r\n")
        said = await visitor.rest()
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"illegal request line" in said.partition(b"\r\n\r\n")[2]
        await visitor.stream.aclose()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_requests_that_came_together_are_answered_in_their_order() -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        one, two = (b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in (1, 2))
        await visitor.stream.send_all(one + two[:10])
        await wait_all_tasks_blocked()
        await visitor.stream.send_all(two[10:] + b"GET /3 HTTP/1.0\r\n\r\n")
        said = await visitor.rest()  # HTTP/1.0 ends after its answer
        assert [said.count(b"GET /%d \n" % number) for number in (1, 2, 3)] == [1, 1, 1]
        assert said.index(b"GET /1") < said.index(b"GET /2") < said.index(b"GET /3")
        await visitor.stream.aclose()


async def test_who_ends_its_own_side_is_answered_all_the_same() -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        await visitor.stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await visitor.stream.send_eof()  # type: ignore[attr-defined]  # memory can
        assert (await visitor.rest()).endswith(b"GET / \n")
        await visitor.stream.aclose()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nfoo bar\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n", b"400"),  # h11 before 0.16 failed
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"GET /" + b"x" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n", b"431"),
    ],
)
async def test_what_is_no_request_is_told_so_and_ended(said: bytes, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        await visitor.stream.send_all(said)
        head, _, body = (await visitor.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert b"Connection: close" in head
        assert body.count(b"\n") == (0 if said.startswith(b"HEAD") else 1)
        await visitor.stream.aclose()
    (line,) = caplog.messages
    assert line.startswith("no request of HTTP from a stranger: ")
    assert ("this looks like MQTT" in line) == (b"MQTT" in said)
    assert ("this looks like TLS" in line) == said.startswith(b"\x16\x03")


async def test_a_fault_of_ours_is_answered_and_the_next_request_served(caplog: pytest.LogCaptureFixture) -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        assert (await visitor.ask("/fault")).status == 500
        assert (await visitor.ask("/")).status == 200
        await visitor.stream.aclose()
    assert caplog.messages == ["a fault of the broker: /fault could not be answered"]


@given(
    pieces=st.lists(
        st.binary(max_size=30)
        | st.sampled_from([b"GET ", b"HEAD ", b"/", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: x\r\n", b"\r\n", b"Content-Length: 2\r\n",
                           b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\n",
                           b"Accept: \xff;version=9\r\n", b"Upgrade: websocket\r\n", b"Connection: close\r\n"])
        | st.sampled_from([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", b"Expect: 100-continue\r\n"]),
        max_size=20,
    ),
    body_bytes_max=st.sampled_from([0, 4]),
)  # fmt: skip
async def test_whatever_is_said_it_is_no_fault_of_ours(pieces: list[bytes], body_bytes_max: int) -> None:
    faults: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = faults.append  # type: ignore[assignment]
    logger = logging.getLogger("broker")
    logger.addHandler(handler)
    try:
        async with trio.open_nursery() as nursery:
            visitor = await visited(nursery, Reception(answer, body_bytes_max=body_bytes_max))
            for piece in pieces:
                with contextlib.suppress(trio.BrokenResourceError):
                    await visitor.stream.send_all(piece)
                await wait_all_tasks_blocked()
            with contextlib.suppress(trio.BrokenResourceError):
                await visitor.stream.send_eof()  # type: ignore[attr-defined]  # memory can
            said = await visitor.rest()
            assert said == b"" or said.startswith(b"HTTP/1.1 ")
            await visitor.stream.aclose()
    finally:
        logger.removeHandler(handler)
    assert faults == []


# ---- time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"GET / HT"])
async def test_a_request_that_does_not_come_is_waited_for_so_long(said: bytes, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        if said:
            await visitor.stream.send_all(said)
        began = trio.current_time()
        assert await visitor.rest() == b""
        assert trio.current_time() - began == HEAD_TIMEOUT_S
        await visitor.stream.aclose()


async def test_a_byte_at_a_time_gains_nothing(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        assert (await visitor.ask("/")).status == 200
        began = trio.current_time()
        async with trio.open_nursery() as talking:

            async def talk() -> None:
                for byte in b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a" * 1000:
                    await visitor.stream.send_all(bytes([byte]))
                    await trio.sleep(0.75)

            talking.start_soon(talk)
            assert await visitor.rest() == b""
            talking.cancel_scope.cancel()
        assert trio.current_time() - began == HEAD_TIMEOUT_S
        await visitor.stream.aclose()


async def test_between_two_requests_there_may_be_longer(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        for _ in range(3):
            assert (await visitor.ask("/")).status == 200
            await trio.sleep(IDLE_TIMEOUT_S - 1)
        assert (await visitor.ask("/")).status == 200
        began = trio.current_time()
        assert await visitor.rest() == b""
        assert trio.current_time() - began == IDLE_TIMEOUT_S
        await visitor.stream.aclose()


async def test_who_does_not_read_is_dropped(autojump_clock: MockClock) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery, buffer_bytes=1000)
        began = trio.current_time()
        await visitor.stream.send_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        await trio.sleep(WRITE_TIMEOUT_S + 1)
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        await visitor.stream.aclose()
    assert trio.current_time() - began == WRITE_TIMEOUT_S + 1


async def test_who_goes_on_talking_after_the_end_is_left(autojump_clock: MockClock) -> None:
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        visitor = await arrived(nursery)
        await visitor.stream.send_all(b"\x00")
        assert (await visitor.rest()).startswith(b"HTTP/1.1 400 ")  # its side ends at once, behind the answer
        began = trio.current_time()
        while trio.lowlevel.current_statistics().tasks_living > tasks:
            with contextlib.suppress(trio.BrokenResourceError):
                await visitor.stream.send_all(b"\x00" * 100)
            await trio.sleep(0.125)
        assert trio.current_time() - began <= LINGER_S + 0.125
        await visitor.stream.aclose()


# ---- bodies, and answers in pieces -----------------------------------------------------------------------------------------


def receiving(pieces: Iterator[bytes]) -> Reception:
    async def answer(request: Request) -> Answer:
        return Answer(200, pieces if request.path == "/pieces" else f"{request.query} {request.from_browser} {request.body!r}\n".encode())

    return Reception(answer, lambda status, line: Answer(status, f"<{line}>".encode()), 10)


async def visited(nursery: trio.Nursery, reception: Reception) -> Visitor:
    ours, theirs = memory_stream_pair(65_536)
    nursery.start_soon(serve, StreamTransport(theirs), "a stranger", reception)
    return Visitor(ours)


async def test_a_body_is_taken_where_that_is_wanted_whole_or_in_chunks() -> None:
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter(())))
        assert (await visitor.ask("/?a=b?c", "POST", body=b"0123456789")).text == "a=b?c False b'0123456789'\n"
        assert (await visitor.ask("/", headers={"Origin": "null"})).text == " True b''\n"
        await visitor.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n")
        await wait_all_tasks_blocked()
        await visitor.stream.send_all(b"1\r\n5\r\n0\r\n\r\n")
        assert bytes(await visitor.stream.receive_some()).endswith(b"\r\n\r\n False b'012345'\n")
        await visitor.stream.aclose()


@pytest.mark.parametrize("head", [b"Content-Length: 11\r\n\r\n01234567890", b"Transfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n"])
async def test_a_body_that_is_too_large_ends_the_connection(head: bytes, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter(())))
        await visitor.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\n" + head)
        said = await visitor.rest()
        assert said.startswith(b"HTTP/1.1 413 ")
        assert said.endswith(b"<the body of a request has 10 bytes at most>")
        await visitor.stream.aclose()


async def test_who_waits_for_leave_to_send_a_body_gets_it() -> None:
    """[RFC 9110, 10.1.1]: some clients send nothing before it, and curl waits for a second."""
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter(())))
        for _ in range(2):
            await visitor.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            assert bytes(await visitor.stream.receive_some()) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await visitor.stream.send_all(b"ab")
            assert bytes(await visitor.stream.receive_some()).endswith(b"\r\n\r\n False b'ab'\n")
        await visitor.stream.aclose()


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_that_would_be_too_large_is_not_waited_for(expect: bytes, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter(())))
        await visitor.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\n" + expect + b"Content-Length: 99999999999999999999\r\n\r\n")
        assert (await visitor.rest()).startswith(b"HTTP/1.1 413 ")
        assert trio.current_time() == began
        await visitor.stream.aclose()


async def test_a_body_that_does_not_come_is_waited_for_so_long(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter(())))
        await visitor.stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n0123")
        assert await visitor.rest() == b""
        await visitor.stream.aclose()
    assert trio.current_time() - began == pytest.approx(HEAD_TIMEOUT_S)


async def test_an_answer_in_pieces_some_of_them_empty() -> None:
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter((b"a", b"", b"bc", b""))))
        reply = await visitor.ask("/pieces")
        assert (reply.text, reply.headers["transfer-encoding"]) == ("abc", "chunked")
        assert (await visitor.ask("/")).status == 200
        await visitor.stream.aclose()
    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(iter((b"a", b"bc"))))
        await visitor.stream.send_all(b"GET /pieces HTTP/1.0\r\n\r\n")
        assert (await visitor.rest()).endswith(b"\r\n\r\nabc")
        await visitor.stream.aclose()


async def test_a_piece_is_made_when_the_one_before_has_been_taken(autojump_clock: MockClock) -> None:
    made = []

    def pieces() -> Iterator[bytes]:
        for number in range(10):
            made.append(number)
            yield LARGE

    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(pieces()))
        await visitor.stream.send_all(b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")
        await wait_all_tasks_blocked()
        assert made == [0]
        while made == [0]:
            await visitor.stream.receive_some(20_000)
            await wait_all_tasks_blocked()
        assert made == [0, 1]
        waits_since = trio.current_time()
    assert trio.current_time() - waits_since == pytest.approx(WRITE_TIMEOUT_S)  # for this piece, and then it is dropped
    assert made == [0, 1]
    await visitor.stream.aclose()


async def test_a_fault_of_ours_in_the_middle_of_an_answer_leaves_it_without_its_end(caplog: pytest.LogCaptureFixture) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a"
        raise KeyError("a fault of ours")

    async with trio.open_nursery() as nursery:
        visitor = await visited(nursery, receiving(pieces()))
        await visitor.stream.send_all(b"GET /pieces HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await visitor.rest()).endswith(b"\r\n\r\n1\r\na\r\n")
        await visitor.stream.aclose()
    assert "a fault of the broker ended the connection of a stranger" in caplog.text
