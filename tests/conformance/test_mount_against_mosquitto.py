"""mount_point as Debian's mosquitto has it: the same clients, filters, topics and rules before and behind one, at both brokers.

What its 2.0.11 forgets, and newer ones do again, is to take the mount point off what it sends; so it is taken off here, from what
comes from Mosquitto only. That one also cannot unsubscribe from behind a mount point, and mounts a shared subscription as if it were a
topic ("factory1/$share/..."), which never gets anything; and filters that begin with a wildcard match topics that begin with $, for the
client: there we differ, on purpose (docs/decisions/0018-mount-points.md).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest
import trio

from broker import Config, open_broker
from broker.net.listener import Listener
from broker.reasons import ReasonCode
from broker.wire.packets import Connect, Disconnect, PubAck, Publish, SubAck, Subscribe, SubscriptionRequest, WillMessage
from tests.conformance.wire_client import WireClient
from tests.mosquitto import mosquitto

M: Final = "factory1/"
BEHIND: Final = ("a", "a/b", "a/b/c", "/", "/a", "a/", "a//c", "$x", "$x/a", "$SYS/x", "factory1", "factory1/a", "no", "no/a", "ä")
"""Published by a client behind the mount point."""
BEFORE: Final = ("factory1", "factory1/", "factory1//", "factory1/a", "factory1/a/b", "factory1/no", "factory1x/a", "a", "no", "$x/a", "factory1/$x")
"""By one before it."""
FILTERS: Final = ("#", "+", "+/+", "a/#", "a", "a/b", "/#", "+/", "$x/#", "$SYS/#", "factory1/#", "no/#", "+/b/+")
WILLS: Final = ("a/will", "no/will", "$x/will")
RULES: Final = [
    "topic #\ntopic $x/#\n",
    "topic #\ntopic $x/#\ntopic deny factory1/no\ntopic deny factory1/no/#\n",
    "topic write #\ntopic read factory1/a/#\ntopic read a\n",
    "topic read #\ntopic write factory1/+\ntopic write a\n",
    "topic #\ntopic deny no\ntopic deny a\n",
    "pattern factory1/%c/#\ntopic read #\n",
]

SECONDS_MAX: Final = 20.0
Heard = dict[tuple[str, ...], object]


async def join(nursery: trio.Nursery, port: int, client_id: str, version: int, will: WillMessage | None = None) -> WireClient:
    client = await WireClient.open(nursery, port, Connect(client_id, version, will=will), True)
    assert client.connack is not None
    assert client.connack.reason == ReasonCode.SUCCESS
    return client


async def what_happens(plain: int, mounted: int, version: int) -> Heard:
    """All that the clients of one broker are told, by who they are and what they asked for."""
    found: Heard = {}

    def take(who: str, what: str, client: WireClient) -> None:
        found[who, what] = sorted((packet.topic, packet.payload, packet.retain) for packet in client.seen if isinstance(packet, Publish))
        client.seen.clear()

    with trio.fail_after(SECONDS_MAX):
        async with trio.open_nursery() as nursery:
            observer = await join(nursery, plain, "observer", version)
            await observer.send(Subscribe(1, (SubscriptionRequest("#", 0), SubscriptionRequest("$x/#", 0))))
            listeners = {filter: await join(nursery, mounted, f"listener{number}", version) for number, filter in enumerate(FILTERS)}
            for filter, client in listeners.items():
                await client.send(Subscribe(1, (SubscriptionRequest(filter, 0),)))
                await client.ping()
                found["granted", filter] = [packet.reasons for packet in client.seen if isinstance(packet, SubAck)]
                client.seen.clear()
            for where, port, topics in (("behind", mounted, BEHIND), ("before", plain, BEFORE)):
                publisher = await join(nursery, port, "a", version)
                for retain in (False, True):
                    for number, topic in enumerate(topics, 1):
                        await publisher.send(Publish(topic, f"{where} {topic}".encode(), 1, retain, packet_id=number))
                    await publisher.ping()
                    if version == 5:
                        refused = {
                            packet.packet_id for packet in publisher.seen if isinstance(packet, PubAck) and packet.reason == ReasonCode.NOT_AUTHORIZED
                        }
                        found["refused", where, str(retain)] = sorted(topics[number - 1] for number in refused)
                    publisher.seen.clear()
                await publisher.send(Disconnect(ReasonCode.SUCCESS))
                await publisher.closed.wait()
            for topic in WILLS:
                dying = await join(nursery, mounted, "a", version, WillMessage(topic, b"will"))
                await dying.drop()
            for client in (observer, *listeners.values()):
                await client.ping()  # twice: a Will of a connection that just ended may come between
                await client.ping()
            take("observer", "live", observer)
            for filter, client in listeners.items():
                take("live", filter, client)
                await client.send(Subscribe(3, (SubscriptionRequest(filter, 0),)))
                await client.ping()
                await client.ping()
                take("retained", filter, client)
            nursery.cancel_scope.cancel()
    return found


def unmounted(heard: Heard) -> Heard:
    """Of Mosquitto's clients behind the mount point: without it, and without what lies not below it."""
    found: Heard = {}
    for key, value in heard.items():
        if key[0] in ("live", "retained") and isinstance(value, list):
            value = sorted((topic[len(M) :], *rest) for topic, *rest in value if len(topic) > len(M))
        found[key] = value
    return found


def without_dollar(heard: Heard) -> Heard:
    """And what the standard hides from a filter that begins with a wildcard [MQTT5-4.7.2-1]."""
    found: Heard = {}
    for key, value in heard.items():
        if key[0] in ("live", "retained") and key[1][0] in "+#" and isinstance(value, list):
            value = [one for one in value if not one[0].startswith("$")]
        found[key] = value
    return found


async def ours(folder: Path, version: int) -> Heard:
    listeners = (Listener(port=0), Listener(port=0, mount_point=M))
    async with open_broker(Config(listeners=listeners, acl_file=str(folder / "acl"), sys_interval_s=0)) as broker:
        plain, mounted = (int(urlsplit(url).port or 0) for url in broker.urls)
        return await what_happens(plain, mounted, version)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("rules", RULES)
def test_it_is_mosquittos(rules: str, version: int, tmp_path: Path) -> None:
    (tmp_path / "acl").write_text(rules)
    (tmp_path / "acl").chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        mounted = probe.getsockname()[1]
    with mosquitto(tmp_path, f"acl_file {tmp_path / 'acl'}", f"listener {mounted} 127.0.0.1", f"mount_point {M}") as plain:
        theirs = trio.run(what_happens, plain, mounted, version)
    mine = trio.run(ours, tmp_path, version)
    wanted = without_dollar(theirs if takes_it_off(theirs) else unmounted(theirs))
    different = {key: (value, mine.get(key)) for key, value in wanted.items() if mine.get(key) != value}
    assert not different, "\n".join(f"{key}:\n  mosquitto {one}\n  ours      {other}" for key, (one, other) in different.items())
    assert mine.keys() == wanted.keys()


def takes_it_off(theirs: Heard) -> bool:
    """Not 2.0.11."""
    live = theirs["live", "#"]
    assert isinstance(live, list)
    return not all(topic.startswith(M.rstrip("/")) for topic, *_ in live)
