"""Generated ACL files, decided by Debian's mosquitto, by our broker behind a socket, and by the rules alone: all three must agree.

Each file is asked everything there is to ask about a fixed list of clients and topics: may it publish, is it delivered to, does it
get what is retained, is its Will sent. A client asks for many topics over one connection, so that thousands of decisions take seconds.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Final

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import Config, open_broker
from broker.auth.acl import AccessRules, parse_rules
from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, PubAck, Publish, SubAck, Subscribe, SubscriptionRequest, WillMessage
from tests.conformance.wire_client import WireClient
from tests.conftest import find_program
from tests.mosquitto import is_2_0, mosquitto

FILES: Final = int(os.environ.get("BROKER_ACL_EXAMPLES", "10"))
DECISIONS_MIN: Final = 5_000
SECONDS_MAX: Final = 20.0

# (user name, Client Identifier): nobody, users with and without rules, names that would be wildcards, names with levels in them.
CLIENTS: Final = [(None, "c1"), ("ann", "c1"), ("bob", "ann"), ("a+b", "c2"), ("ann", "c#"), ("x/y", "p/q")]
LEVELS: Final = ("a", "ann", "c1")
TOPICS: Final = [
    *("/".join(levels) for count in (1, 2, 3) for levels in itertools.product(LEVELS, repeat=count)),
    *(
        "/",
        "//",
        "a/",
        "/a",
        "a//c1",
        "$x",
        "$x/a",
        "$x/ann/c1",
        "x/y",
        "a/x/y",
        "p/q/a",
        "a/p/q",
        "%u",
        "%c/a",
        "a+b"[0] + "/b",
        "bob",
        "a/bob/c1/ann",
    ),
]
WILLS: Final = ("a", "ann/c1", "c1/a", "x/y")
ALL: Final = ("#", "$x/#")
OVERSEER: Final = "user overseer\ntopic #\ntopic $x/#\n"
"""A user who may do everything, to publish to the others and to receive from them."""

_words = st.sampled_from([*LEVELS, "+", "%u", "%c", "$x", "x", "", "pre%u", "%c%u", "+", "ann"])


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(_words, min_size=1, max_size=3))
    if draw(st.integers(0, 2)) == 0:
        levels.append("#")
    text = "/".join(levels)
    return text or "#"


_access = st.sampled_from(["", "read ", "write ", "readwrite ", "deny ", "read ", "write "])
_lines = st.one_of(
    st.builds("topic {}{}".format, _access, filters()),
    st.builds("topic {}{}".format, _access, filters()),
    st.builds("pattern {}{}".format, _access, filters()),
    st.sampled_from(
        ["user ann", "user bob", "user x/y", "user a+b", "", "# comment", "user  ann ", "topic  read   a/+  ", "pattern read #", "topic deny a"]
    ),
)
files = st.lists(_lines, min_size=2, max_size=16).map("\n".join)


# ---- Mosquitto -----------------------------------------------------------------------------------------------------------


# ---- asking a broker, whichever --------------------------------------------------------------------------------------------


async def join(nursery: trio.Nursery, port: int, username: str | None, client_id: str, will: WillMessage | None = None) -> WireClient:
    client = await WireClient.open(nursery, port, Connect(client_id, 5, username=username, will=will), True)
    assert client.connack is not None
    assert client.connack.reason == ReasonCode.SUCCESS, client.connack
    return client


def arrived(client: WireClient) -> set[str]:
    found = {packet.topic for packet in client.seen if isinstance(packet, Publish)}
    client.seen.clear()
    return found


async def subscribe_all(client: WireClient) -> None:
    await client.send(Subscribe(1, tuple(SubscriptionRequest(filter, 0) for filter in ALL)))
    await client.ping()
    answer = next(packet for packet in client.seen if isinstance(packet, SubAck))
    assert answer.reasons == (ReasonCode.SUCCESS,) * len(ALL)


async def publishable(client: WireClient) -> set[str]:
    for number, topic in enumerate(TOPICS, 1):
        await client.send(Publish(topic, b"", qos=1, packet_id=number))
    await client.ping()
    answers = {packet.packet_id: packet.reason for packet in client.seen if isinstance(packet, PubAck)}
    client.seen.clear()
    assert set(answers) == set(range(1, len(TOPICS) + 1))
    return {TOPICS[number - 1] for number, reason in answers.items() if reason != ReasonCode.NOT_AUTHORIZED}


async def decisions(port: int) -> dict[tuple[object, ...], bool]:
    """What this broker decided: (how, user name, Client Identifier, topic) -> was it allowed?"""
    found: dict[tuple[object, ...], bool] = {}

    def note(how: str, who: tuple[str | None, str], allowed: set[str], topics: tuple[str, ...] = tuple(TOPICS)) -> None:
        found.update({(how, *who, topic): topic in allowed for topic in topics})

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            overseer = await join(nursery, port, "overseer", "overseer")
            await overseer.send(*(Publish(topic, b"kept", retain=True) for topic in TOPICS))
            await overseer.ping()
            for who in CLIENTS:
                client = await join(nursery, port, *who)
                await subscribe_all(client)
                await client.ping()
                note("retained", who, arrived(client))
                await overseer.send(*(Publish(topic, b"now") for topic in TOPICS))
                await overseer.ping()
                await client.ping()
                note("receive", who, arrived(client))
                await client.send(Disconnect(ReasonCode.SUCCESS))
                await client.closed.wait()
                client = await join(nursery, port, *who)
                note("publish", who, await publishable(client))
                await client.send(Disconnect(ReasonCode.SUCCESS))
                await client.closed.wait()
            await subscribe_all(overseer)
            overseer.seen.clear()
            for who in CLIENTS:
                sent = set()
                for topic in WILLS:
                    client = await join(nursery, port, *who, will=WillMessage(topic, b"gone"))
                    await client.send(Disconnect(ReasonCode.DISCONNECT_WITH_WILL))
                    await client.closed.wait()
                    await overseer.ping()
                    sent |= arrived(overseer)
                note("will", who, sent, WILLS)
            nursery.cancel_scope.cancel()
    return found


async def ours(folder: Path) -> dict[tuple[object, ...], bool]:
    config = Config(acl_file=str(folder / "acl"), sys_interval_s=0)
    async with open_broker(config, listeners=["mqtt://127.0.0.1:0"]) as broker:
        return await decisions(int(broker.urls[0].rpartition(":")[2]))


def explain(rules: AccessRules, key: tuple[object, ...]) -> bool:
    how, username, client_id, topic = key
    action = "publish" if how in ("publish", "will") else "receive"
    assert username is None or isinstance(username, str)
    return rules.decide(username, str(client_id), action, str(topic)).allowed  # type: ignore[arg-type]  # one of two literals


# ---- the comparison --------------------------------------------------------------------------------------------------------


def test_generated_files_are_decided_as_mosquitto_does(tmp_path: Path) -> None:
    counted = 0
    allowed = 0
    of_2_0 = is_2_0(find_program("mosquitto", "mosquitto"))

    @given(files)
    @settings(max_examples=FILES, deadline=None, suppress_health_check=list(HealthCheck))
    def compare(text: str) -> None:
        nonlocal counted, allowed
        text = f"{text}\n{OVERSEER}"
        rules = AccessRules(parse_rules(text, "acl"))
        (tmp_path / "acl").write_text(text)
        (tmp_path / "acl").chmod(0o644)
        with mosquitto(tmp_path, f"acl_file {tmp_path / 'acl'}") as port:
            theirs = trio.run(decisions, port)
        mine = trio.run(ours, tmp_path)
        different = {key: answer for key, answer in theirs.items() if answer is not mine[key] or answer is not explain(rules, key)}
        if not of_2_0:  # there a pattern matches no name with levels in it (eclipse-mosquitto/mosquitto#3520)
            different = {key: answer for key, answer in different.items() if "/" not in f"{key[1]}{key[2]}"}
        assert not different, f"{text}\nmosquitto: {different}"
        counted += len(theirs)
        allowed += sum(theirs.values())

    compare()
    print(f"{counted} decisions compared, {allowed} of them allowed")
    assert counted >= DECISIONS_MIN
    assert counted // 50 < allowed < counted * 49 // 50  # or it would compare little
