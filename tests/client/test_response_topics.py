"""Where answers come to, when something else happens to that topic: the broker takes it away, or a scope of the program's own has it too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from broker.client import Client, Reconnect, connect
from broker.errors import ConnectionLost, SubscribeRefused
from broker.wire.packets import Properties, PubAck, Publish, Subscribe
from tests.client.scripted import Peer, ScriptedBroker, connected

blocked = trio.testing.wait_all_tasks_blocked


async def answer(peer: Peer, question: Publish) -> None:
    await peer.send(Publish("mine", b"!", properties=Properties(correlation_data=question.properties.correlation_data)))


async def asked(peer: Peer) -> Publish:
    question = await peer.expect(Publish)
    await peer.send(PubAck(question.packet_id))
    return question


def ask(nursery: trio.Nursery, client: Client) -> Callable[[], Awaitable[bytes]]:
    """A request in the background; what to await for its answer."""
    send, receive = trio.open_memory_channel[bytes | Exception](1)

    async def run() -> None:
        try:
            send.send_nowait((await client.request("ask", response_topic="mine")).payload)
        except (SubscribeRefused, ConnectionLost) as error:
            send.send_nowait(error)

    async def result() -> bytes:
        with trio.fail_after(60):
            found = await receive.receive()
        if isinstance(found, Exception):
            raise found
        return found

    nursery.start_soon(run)
    return result


async def test_a_request_that_waits_hears_that_its_response_topic_is_refused_after_a_lost_session(autojump_clock: trio.testing.MockClock) -> None:
    broker = ScriptedBroker()
    async with trio.open_nursery() as nursery:
        peers: list[Peer] = []

        async def serve() -> None:
            peers.append(await broker.next())
            await peers[-1].accept()

        nursery.start_soon(serve)
        async with connect(broker, client_id="me", keep_alive_s=0, reconnect=Reconnect(delay_s=0)) as client:
            try:
                result = ask(nursery, client)
                await peers[0].grant()
                await asked(peers[0])
                nursery.start_soon(serve)
                await peers[0].cut()
                await blocked()
                await peers[1].grant(0x87)
                with pytest.raises(SubscribeRefused):
                    await result()
                result = ask(nursery, client)  # asks for it anew
                await peers[1].grant()
                await answer(peers[1], await asked(peers[1]))
                assert await result() == b"!"
                await peers[1].let_go()
            finally:
                peers[-1].ended.set()


async def test_a_scope_that_ends_leaves_the_response_topic_of_a_request(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        result = ask(nursery, client)
        await peer.grant()
        question = await asked(peer)
        nursery.start_soon(peer.grant)
        async with client.subscribe("mine"):
            pass
        await peer.silence()  # no UNSUBSCRIBE: the answer is yet to come
        await answer(peer, question)
        assert await result() == b"!"
        assert (await peer.let_go()).filters == ("mine",)


async def test_a_request_that_ends_leaves_the_scope_that_the_program_opened_meanwhile(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        result = ask(nursery, client)
        await peer.grant()
        question = await asked(peer)
        nursery.start_soon(peer.grant)
        async with client.subscribe("mine"):
            await answer(peer, question)
            assert await result() == b"!"
            await peer.silence()
            nursery.start_soon(peer.let_go)


async def test_a_response_topic_unsubscribed_from_before_it_was_granted_holds_up_no_end(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, peer, _), trio.open_nursery() as nursery:
        result = ask(nursery, client)
        await peer.expect(Subscribe)
        nursery.start_soon(peer.let_go)
        await client.unsubscribe("mine")
        peer.ended.set()
        await client.disconnect()
        with pytest.raises(ConnectionLost):
            await result()
