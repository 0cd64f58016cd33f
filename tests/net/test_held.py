"""What was read and could not be worked through at once is worked through later, though the client sends nothing more."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from broker.auth.hashes import hash_password
from broker.auth.passwords import with_user
from broker.hub import Broker
from broker.net.authentication import ConnectRequest
from broker.net.listener import Listener
from broker.opening import open_broker
from broker.wire.codec import encode
from broker.wire.packets import ConnAck, Connect, PingReq, PingResp, Publish, SubAck, Subscribe, SubscriptionRequest
from tests.net.mqtt import Client
from tests.net.test_limits import Phone


async def pong(client: Client) -> None:
    with trio.fail_after(5):
        while await client.receive() != PingResp():
            pass


async def test_after_a_pause_that_its_own_flush_has_ended() -> None:
    """Both subscribers' sockets take the message the moment it is sent, so the publisher's pause is over before anybody has seen it."""
    async with open_broker(listeners=["mqtt://127.0.0.1:0"], outbox_bytes_high=1024) as hub, Phone(hub) as phone:
        publisher, *subscribers = [await phone.dial() for _ in range(3)]
        for number, one in enumerate((publisher, *subscribers)):
            await one.connect(f"c{number}")
        for one in subscribers:
            await one.subscribe("t")
        for _ in range(3):
            await publisher.send(Publish("t", bytes(10_000)), PingReq())
            await pong(publisher)


async def test_after_a_pause_that_began_and_ended_before_it_had_a_task() -> None:
    """What comes with the connection is heard before its task begins, and the flush that follows ends the pause."""
    async with open_broker(listeners=["mqtt://127.0.0.1:0"], outbox_bytes_high=1024) as hub, Phone(hub) as phone:
        for name in ("a", "b"):
            subscriber = await phone.dial()
            await subscriber.connect(name)
            await subscriber.subscribe("t")
        # At once, so that the broker does not come between.
        with socket.create_connection(("127.0.0.1", int(hub.urls[0].rpartition(":")[2]))) as dialled:
            dialled.sendall(b"".join(encode(packet, 5) for packet in (Connect("p"), Publish("t", bytes(10_000)), Publish("t"), PingReq())))
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(dialled.dup()))
            async with stream:
                await pong(Client(stream))


async def test_after_its_own_socket_was_full() -> None:
    """One that hears itself, and had a task for it alone until its answers found no place."""
    small = Listener(port=0, send_buffer_bytes=4096)
    async with open_broker(listeners=[small], work_per_turn_max=4) as hub:
        connected = trio.socket.socket()
        connected.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        await connected.connect(("127.0.0.1", int(hub.urls[0].rpartition(":")[2])))
        client = Client(trio.SocketStream(connected))
        await client.connect("c")
        await client.subscribe("t/+")
        await client.send(*[Publish(f"t/{number}", bytes(6000)) for number in range(10)])
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            for _ in range(10):
                assert isinstance(await client.receive(), Publish)
        await client.stream.aclose()


async def test_after_a_pause_that_two_tasks_wait_for() -> None:
    """The one that works off what came ahead of the verdict, and the one that read more meanwhile."""
    verdict = trio.Event()

    async def authenticate(request: ConnectRequest) -> str | None:
        if request.client_id == "publisher":
            await verdict.wait()
        return request.client_id

    small = Listener(port=0, send_buffer_bytes=4096)
    async with (
        open_broker(listeners=[small], authenticate=authenticate, outbox_bytes_high=1024, slow_subscriber_grace_s=100) as hub,
        Phone(hub) as phone,
    ):
        with trio.socket.socket() as dialled:
            dialled.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await dialled.connect(("127.0.0.1", int(hub.urls[0].rpartition(":")[2])))
            slow = Client(trio.SocketStream(dialled))
            await slow.connect("slow")
            await slow.subscribe("t")
            publisher = await phone.dial()
            await publisher.send(Connect("publisher"), *[Publish("t", bytes(10_000)) for _ in range(6)])
            await wait_all_tasks_blocked()
            verdict.set()
            await wait_all_tasks_blocked()
            await publisher.send(PingReq())
            await wait_all_tasks_blocked()
            with trio.fail_after(5):
                for _ in range(6):
                    assert isinstance(await slow.receive(), Publish)
            await pong(publisher)


async def test_after_a_verdict_that_needs_no_waiting(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(with_user("", "ann", hash_password(b"secret"))[0])
    locked = Listener(port=0, password_file=str(tmp_path / "passwords"))
    async with open_broker(listeners=[locked, Listener(port=0, allow_anonymous=True)]) as hub, Phone(hub) as phone:
        client = await phone.dial(1)
        await client.send(Connect("c"), Subscribe(1, (SubscriptionRequest("t"),)))
        with trio.fail_after(5):
            assert isinstance(await client.receive(), ConnAck)
            assert isinstance(await client.receive(), SubAck)


async def test_who_was_asked_is_alone_again_when_it_has_answered(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text(with_user("", "ann", hash_password(b"secret"))[0])
    small = Listener(port=0, password_file=str(tmp_path / "passwords"), send_buffer_bytes=4096)
    async with open_broker(listeners=[small], work_per_turn_max=4) as hub:
        connected = trio.socket.socket()
        connected.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        await connected.connect(("127.0.0.1", int(hub.urls[0].rpartition(":")[2])))
        client = Client(trio.SocketStream(connected))
        await client.send(Connect("c", username="ann", password=b"secret"), PingReq())  # the second one ahead of the answer
        assert isinstance(await client.receive(), ConnAck)
        await pong(client)
        (connection,) = hub._server.connections
        await client.send(PingReq())
        await pong(client)
        await wait_all_tasks_blocked()
        assert connection.nursery is None
        await client.subscribe("t/+")
        await client.send(*[Publish(f"t/{number}", bytes(6000)) for number in range(10)])  # for which it needs one again
        await wait_all_tasks_blocked()
        assert connection.nursery is not None
        with trio.fail_after(5):
            for _ in range(10):
                assert isinstance(await client.receive(), Publish)
        await client.stream.aclose()


@pytest.mark.parametrize("asks", [False, True])
async def test_after_a_wait_for_its_rate_that_began_with_connect(asks: bool) -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        await trio.lowlevel.checkpoint()
        return request.client_id

    async with open_broker(listeners=["mqtt://127.0.0.1:0"], authenticate=authenticate if asks else None, publish_per_s_max=200) as hub:
        await check_rate(hub)


async def check_rate(hub: Broker) -> None:
    async with Phone(hub) as phone:
        client = await phone.dial()
        await client.send(Connect("c"), *[Publish("t", b"%d" % number) for number in range(280)], PingReq())
        await pong(client)
    assert hub.statistics()["publish_received"] == 280
    assert hub.statistics()["held_up_count"] > 0
