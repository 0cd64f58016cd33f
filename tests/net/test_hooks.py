"""What is promised of `authenticate` and `authorize`, each sentence by itself: at a broker, with clients beside the one that is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from broker import Broker, ConnectRequest, open_broker
from broker.net.authentication import QUESTIONS_COUNT_MAX
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, PingReq, PingResp, Properties, PubAck, Publish, SubAck, Subscribe, SubscriptionRequest, WillMessage
from tests.net.mqtt import Client

YES = ReasonCode.SUCCESS
BAD = ReasonCode.BAD_USER_NAME_OR_PASSWORD
NO = ReasonCode.NOT_AUTHORIZED
LATER = ReasonCode.SERVER_UNAVAILABLE


@asynccontextmanager
async def served(authenticate: Any = None, **more: Any) -> AsyncIterator[tuple[Broker, Callable[[], Client]]]:
    """A broker, and what makes clients of it over memory."""
    async with open_broker(authenticate=authenticate, **more) as hub, trio.open_nursery() as nursery:

        def client() -> Client:
            ours, theirs = memory_stream_pair()
            nursery.start_soon(hub.attach, theirs)
            return Client(ours)

        yield hub, client
        nursery.cancel_scope.cancel()


async def reason(client: Client, name: str, *, method: str | None = None) -> ReasonCode:
    await client.send(Connect(name, 5, True, username=name, properties=Properties(authentication_method=method)))
    answer = await client.receive()
    assert isinstance(answer, ConnAck)
    return answer.reason


async def is_served(client: Client) -> None:
    """At once: no virtual time passes."""
    began = trio.current_time()
    await client.send(PingReq())
    assert isinstance(await client.receive(), PingResp)
    assert trio.current_time() == began


def slow_for(names: set[str], seconds: float = 3) -> Callable[[ConnectRequest], Awaitable[str | None]]:
    async def authenticate(request: ConnectRequest) -> str | None:
        if request.username in names:
            await trio.sleep(seconds)
        return request.username

    return authenticate


# ---- authenticate ------------------------------------------------------------------------------------------------------------------


async def test_a_slow_hook_delays_nobody_else(autojump_clock: MockClock) -> None:
    """Neither who is in, nor who comes: only its own client."""
    async with served(slow_for({"slow"})) as (_, client), trio.open_nursery() as nursery:
        here = client()
        assert await reason(here, "here") == YES
        slow = client()
        await slow.send(Connect("slow", 5, True, username="slow"), PingReq())
        await wait_all_tasks_blocked()
        await is_served(here)
        comes = client()
        assert await reason(comes, "comes") == YES
        assert trio.current_time() == 0
        answer = await slow.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == YES
        assert trio.current_time() == 3
        assert isinstance(await slow.receive(), PingResp)  # what it sent ahead is done then
        nursery.cancel_scope.cancel()


async def test_the_hook_runs_in_the_clients_own_nursery_and_ends_with_it(autojump_clock: MockClock) -> None:
    """Whoever leaves is asked about no more, whoever it was that left."""
    ended = trio.Event()
    began = trio.Event()

    async def authenticate(request: ConnectRequest) -> str | None:
        if request.username == "leaves":
            began.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
        return request.username

    async with served(authenticate) as (hub, client):
        here = client()
        assert await reason(here, "here") == YES
        leaves = client()
        await leaves.send(Connect("leaves", 5, True, username="leaves"))
        await began.wait()
        await leaves.stream.aclose()
        await ended.wait()
        assert trio.current_time() == 0
        await is_served(here)
        assert [one.client_id for one in hub.clients()] == ["here"]
        await wait_all_tasks_blocked()
        assert hub.statistics()["connections_open_count"] == 1


async def test_the_brokers_end_cancels_every_question(autojump_clock: MockClock) -> None:
    cancelled = 0

    async def authenticate(request: ConnectRequest) -> str | None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1
        return None

    async with served(authenticate) as (hub, client):
        clients = [client() for _ in range(3)]
        for number, one in enumerate(clients):
            await one.send(Connect(f"c{number}", 5, True))
        await wait_all_tasks_blocked()
        with trio.fail_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hub.shutdown, 1)
                for one in clients:
                    answer = await one.receive()
                    assert isinstance(answer, ConnAck)
                    assert answer.reason == LATER
                    await one.stream.aclose()
    assert cancelled == 3


async def test_the_deadline_is_that_of_connect_and_refuses(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with served(slow_for({"slow"}, 100), connect_timeout_s=4) as (hub, client):
        slow = client()
        await trio.sleep(1)  # it has been here for a second
        assert await reason(slow, "slow") == LATER
        assert trio.current_time() == 4
        assert hub.clients() == []
        assert await reason(client(), "quick") == YES
    assert "the authenticate hook gave no answer in time: client 'slow'" in caplog.text


async def test_no_more_than_the_cap_are_asked_at_a_time_and_waiting_counts(autojump_clock: MockClock) -> None:
    running = most = 0

    async def authenticate(request: ConnectRequest) -> str | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await trio.sleep(6)
        finally:
            running -= 1
        return request.username

    answers: list[ReasonCode] = []
    async with served(authenticate, connect_timeout_s=10) as (_, client):

        async def come(number: int) -> None:
            answers.append(await reason(client(), f"c{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(QUESTIONS_COUNT_MAX + 30):
                nursery.start_soon(come, number)
        # The last ones waited 6 s for their turn and had 4 s left.
        assert most == QUESTIONS_COUNT_MAX
        assert (answers.count(YES), answers.count(LATER)) == (QUESTIONS_COUNT_MAX, 30)
        assert trio.current_time() == 10
        assert running == 0


async def test_who_leaves_while_waiting_for_a_turn_takes_none(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.net.server.QUESTIONS_COUNT_MAX", 1)
    asked = []

    async def authenticate(request: ConnectRequest) -> str | None:
        asked.append(request.username)
        await trio.sleep(2)
        return request.username

    async with served(authenticate) as (_, client):
        first, second, third = client(), client(), client()
        for name, one in (("first", first), ("second", second), ("third", third)):
            await one.send(Connect(name, 5, True, username=name))
            await wait_all_tasks_blocked()
        await second.stream.aclose()
        assert isinstance(await third.receive(), ConnAck)
        assert asked == ["first", "third"]
        assert trio.current_time() == 4


async def test_who_was_refused_before_it_could_be_asked_about_is_not() -> None:
    asked = []

    async def authenticate(request: ConnectRequest) -> str | None:
        asked.append(request.client_id)
        return "somebody"

    async with served(authenticate) as (_, client):
        hasty, other = client(), client()
        connect = Connect("hasty", 5, True, properties=Properties(authentication_method="SCRAM", authentication_data=b"secret"))
        await hasty.send(connect, PingReq())  # nothing but AUTH may come before CONNACK
        answer = await hasty.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == ReasonCode.PROTOCOL_ERROR
        assert await reason(other, "other") == YES
        assert asked == ["other"]


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("x"), trio.TooSlowError(), trio.BrokenResourceError(), ExceptionGroup("x", [ValueError()]), OSError(32, "broken"), KeyError()],
)
async def test_a_failure_refuses_and_touches_nobody_else(fault: Exception, autojump_clock: MockClock) -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        if request.username == "bad":
            await trio.lowlevel.checkpoint()
            raise fault
        return request.username

    async with served(authenticate) as (hub, client):
        here = client()
        assert await reason(here, "here") == YES
        assert await reason(client(), "bad") == LATER
        await is_served(here)
        assert [one.client_id for one in hub.clients()] == ["here"]
        assert await reason(client(), "next") == YES


@pytest.mark.parametrize("given", [None, True, 1, b"ann", ["ann"], False, 0])
async def test_only_a_name_admits(given: object) -> None:
    async def authenticate(request: ConnectRequest) -> Any:
        return given

    async with served(authenticate) as (hub, client):
        assert await reason(client(), "x") == BAD
        assert await reason(client(), "x", method="M") == NO
        assert hub.clients() == []


async def test_a_hook_that_is_not_asynchronous_refuses(caplog: pytest.LogCaptureFixture) -> None:
    def authenticate(request: ConnectRequest) -> str | None:
        return request.username

    async with served(authenticate) as (_, client):
        assert await reason(client(), "x") == LATER
    assert "TypeError" in caplog.text


async def test_a_hook_may_use_a_nursery_a_thread_and_a_deadline_of_its_own() -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        names: list[str] = []

        async def look_up() -> None:
            names.append(await trio.to_thread.run_sync(lambda: "ann"))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look_up)
        return names[0]

    async with served(authenticate) as (hub, client):
        assert await reason(client(), "x") == YES
        assert hub.clients()[0].username == "ann"


async def test_a_hook_that_takes_its_own_cancellation_for_an_answer_is_not_believed(autojump_clock: MockClock) -> None:
    """Past its deadline it says yes after all."""

    async def authenticate(request: ConnectRequest) -> str | None:
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        return "ann"

    async with served(authenticate, connect_timeout_s=4) as (hub, client):
        assert await reason(client(), "x") == LATER
        assert hub.clients() == []
        await trio.sleep(30)
        assert hub.clients() == []


async def test_a_challenge_that_nobody_answers_ends_with_the_question(autojump_clock: MockClock) -> None:
    async def authenticate(request: ConnectRequest) -> str | None:
        return (await request.challenge(b"?")).decode()

    async with served(authenticate, connect_timeout_s=4) as (hub, client):
        one = client()
        await one.send(Connect("x", 5, True, properties=Properties(authentication_method="M")))
        assert await one.receive() is not None
        answer = await one.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == NO
        assert trio.current_time() == 4
        assert hub.clients() == []


# ---- authorize ---------------------------------------------------------------------------------------------------------------------


async def test_authorize_decides_and_a_failure_refuses(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    def authorize(username: str | None, client_id: str, action: str, topic: str) -> Any:
        if topic.startswith("fails"):
            raise LookupError("of the rule")
        if topic == "truthy":
            return 1
        return topic == "yes"

    async with served(authorize=authorize) as (hub, client):
        one = client()
        assert await reason(one, "x") == YES
        for topic, allowed in (("yes", True), ("no", False), ("fails", False), ("truthy", False)):
            await one.send(Publish(topic, b"", qos=1, packet_id=1))
            answer = await one.receive()
            assert isinstance(answer, PubAck)
            assert (answer.reason != NO) is allowed, topic
            await one.send(Subscribe(2, (SubscriptionRequest(topic),)))
            granted = await one.receive()
            assert isinstance(granted, SubAck)
            assert (granted.reasons[0] < 0x80) is allowed, topic
        await hub.publish("fails/too")
        await is_served(one)
        refused = client()
        await refused.send(Connect("w", 5, True, will=WillMessage("fails", b"")))
        answer = await refused.receive()
        assert isinstance(answer, ConnAck)
        assert answer.reason == NO
    assert "the authorize rule failed; refused" in caplog.text


async def test_authorize_is_asked_once_for_a_known_topic_until_it_is_told_to_forget(autojump_clock: MockClock) -> None:
    asked = []

    def authorize(username: str | None, client_id: str, action: str, topic: str) -> bool:
        asked.append((action, topic))
        return True

    async with served(authorize=authorize) as (hub, client):
        one = client()
        assert await reason(one, "x") == YES
        for _ in range(5):
            await one.send(Publish("t", b""))
            await is_served(one)
        assert asked == [("publish", "t")]
        hub.forget_permissions()
        await one.send(Publish("t", b""))
        await is_served(one)
        assert asked == [("publish", "t")] * 2
