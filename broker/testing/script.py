"""What happens in one simulated run: clients, limits and steps, made from a seed, written down so that it can be pasted into a test.

A step is (what, client, how). Every step can be left out of a script and the rest still makes sense (a client that is not
connected does not publish), so that a failing script can be made shorter by dropping steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any, Final, TypeAlias

import msgspec

from broker.wire.packets import MQTT_5, MQTT_31, MQTT_311

Step: TypeAlias = tuple[str, int, dict[str, Any]]

TOPICS: Final = ("a/1", "a/2", "b/1", "b/2/x", "c/1")
"""c: only for staff, in runs with access rules."""
GROUP_TOPICS: Final = ("g/1/x", "g/2/x")
FILTERS: Final = ("a/1", "a/2", "a/+", "a/#", "b/1", "b/#", "+/1", "c/1", "b/+/x", "will/#")
GROUP_FILTERS: Final = ("$share/team/g/#", "$share/team/g/#", "$share/crew/g/1/x")


class ClientSpec(msgspec.Struct, frozen=True):
    client_id: str
    version: int = MQTT_5
    username: str | None = None
    keep_alive_s: int = 0
    receive_maximum: int | None = None
    packet_bytes_max: int | None = None
    topic_alias_maximum: int | None = None
    own: bool = False
    """The broker's own client core, which reconnects by itself, not a scripted one."""


class Script(msgspec.Struct, frozen=True):
    seed: int
    """For what is not a step: the order of what happens at the same instant, and how delays vary."""
    clients: tuple[ClientSpec, ...]
    steps: tuple[Step, ...]
    limits: dict[str, Any] = {}
    overflow: dict[str, str] = {}
    access_rules: bool = False
    asks_authentication: bool = False
    lasting: bool = False
    """The broker has a store; it may crash."""

    def pasteable(self) -> str:
        """Python text that makes this script."""
        lines = ["Script(", f"    seed={self.seed},"]
        lines.append(f"    clients=({', '.join(repr(client) for client in self.clients)},),")
        lines.append(f"    limits={self.limits!r}, overflow={self.overflow!r},")
        lines.append(f"    access_rules={self.access_rules}, asks_authentication={self.asks_authentication}, lasting={self.lasting},")
        lines.append("    steps=(")
        lines += [f"        {step!r}," for step in self.steps]
        return "\n".join([*lines, "    ),", ")"])


def random_script(seed: int, steps_count: int = 60) -> Script:
    """The same for the same seed, on every machine."""
    random = Random(seed)
    clients = tuple(_random_client(random, index) for index in range(random.randint(2, 5)))
    limits: dict[str, Any] = {"session_expiry_s_max": 100_000}
    overflow: dict[str, str] = {}
    if random.random() < 0.6:
        for name, values in _LIMITS.items():
            if random.random() < 0.3:
                limits[name] = random.choice(values)
    if random.random() < 0.25:
        limits |= {"outbox_bytes_high": 1024, "outbox_bytes_max": 20_000}  # so that somebody is paused
    if random.random() < 0.3:
        overflow["#"] = random.choice(("drop-oldest", "drop-newest", "latest", "disconnect", "refuse"))
    steps: list[Step] = []
    for index in range(len(clients)):
        if random.random() < 0.5:
            steps.append(("network", index, _random_faults(random)))
        steps.append(("connect", index, _random_connect(random)))
    steps.append(("wait", 0, {"seconds": 5.0}))
    for index in range(len(clients)):
        steps.append(("subscribe", index, _random_subscribe(random)))
    if seed % 8 == 5:  # two that choose the same group by chance are rare
        steps += [("subscribe", index, _TEAM) for index, client in enumerate(clients) if client.version == MQTT_5]
    kinds, weights = zip(*_KINDS, strict=True)
    cumulative = list(itertools.accumulate(weights))
    for _ in range(steps_count):
        kind = random.choices(kinds, cum_weights=cumulative)[0]
        steps.append((kind, random.randrange(len(clients)), _MAKERS[kind](random)))
    if seed % 4 == 3:
        steps += _overlap()
    script = Script(seed, clients, tuple(steps), limits, overflow, random.random() < 0.3, random.random() < 0.15)
    return _with_crashes(script, Random(-1 - seed)) if seed % 3 == 2 else script


def _with_crashes(script: Script, random: Random) -> Script:
    steps: list[Step] = []
    for kind, client, how in script.steps:
        steps.append((kind, client, how))
        if kind == "publish" and random.random() < 0.2:  # in the middle of it, or between its acknowledgement and the disk, if that were possible
            steps += [("wait", 0, {"seconds": random.choice((0.0, 0.00031, 0.0107))}), ("crash", 0, {})]
        elif random.random() < 0.05:
            steps.append(("crash", 0, {}))
    if random.random() < 0.5:
        steps += _acknowledged_and_gone(random)
    if random.random() < 0.5:
        steps += _a_run_and_gone(random)
    return msgspec.structs.replace(script, steps=tuple(steps), lasting=True)


def _acknowledged_and_gone(random: Random) -> list[Step]:
    """A message for somebody who is away, and the broker dies when its publisher can just have been answered. By chance that is rare."""
    steps = _two_at_hand(random)
    steps += [("disconnect", 0, {"how": "cut"}), ("wait", 0, {"seconds": 1.0307})]
    quiet = {"expiry_s": None, "alias": False, "clear": False, "size": 10}
    steps += [("publish", 1, {"topic": "a/2", "qos": random.choice((1, 2)), "retain": random.random() < 0.3, "count": 3, **quiet})]
    return [*steps, ("wait", 0, {"seconds": 0.0107}), ("crash", 0, {})]


def _a_run_and_gone(random: Random) -> list[Step]:
    """Messages that come together for somebody who then reads none of them, or acknowledges some and is away for long before the broker dies."""
    steps = _two_at_hand(random)
    quiet = {"topic": "a/2", "retain": False, "expiry_s": None, "alias": False, "clear": False, "size": 100}
    steps += [("publish", 1, {**quiet, "qos": 1, "count": 1}), ("wait", 0, {"seconds": 1.0307})]  # so that its topic is known
    many: Step = ("publish", 1, {**quiet, "qos": random.choice((1, 2, 2)), "count": 30})
    if random.random() < 0.5:
        steps += [("read", 0, {"on": False}), many, ("wait", 0, {"seconds": 1.0307})]
    else:
        steps += [("network", 0, {"delay_s": 0.5, "split_bytes": 0, "capacity_bytes": 1000}), many]
        steps += [("wait", 0, {"seconds": random.choice((1.3019, 2.3023, 3.3029))}), ("disconnect", 0, {"how": "cut"})]
        steps.append(("wait", 0, {"seconds": 300.1301}))
    return [*steps, ("crash", 0, {})]


def _two_at_hand(random: Random) -> list[Step]:
    """The first, with a session that lasts, has subscribed to what the second is going to publish."""
    steps: list[Step] = []
    for index, how in ((0, {"clean": False, "expiry_s": 5_000}), (1, {"clean": random.random() < 0.5, "expiry_s": 0})):
        steps += [("network", index, {"delay_s": 0.0, "split_bytes": 0, "capacity_bytes": 65_536}), ("read", index, {"on": True})]
        steps += [("hold", index, {"on": False}), ("connect", index, how), ("wait", 0, {"seconds": 5.0709})]
    return [*steps, ("subscribe", 0, {"filters": ["a/2"], "qos": 2, **_PLAIN}), ("wait", 0, {"seconds": 5.0709})]


_LIMITS: Final[dict[str, tuple[Any, ...]]] = {
    "inflight_count_max": (1, 2, 5),
    "receive_maximum": (1, 2, 5),
    "topic_alias_maximum": (0, 1, 2),
    "queue_count_max": (0, 2, 5),
    "queue_bytes_max": (100, 3000),
    "outbox_bytes_high": (1024, 4096),
    "outbox_bytes_max": (8192, 20_000),
    "outbox_count_max": (1, 10),
    "memory_bytes_max": (5_000, 50_000),
    "work_per_turn_max": (1, 3, 20),
    "slow_subscriber_grace_s": (0.0, 0.5, 5.0),
    "retained_count_max": (1, 3),
    "routes_count_max": (1, 2),
    "maximum_qos": (1,),
    "session_expiry_s_max": (20, 1000),
    "keepalive_s_max": (60,),
}

_KINDS: Final = (
    ("publish", 30), ("subscribe", 6), ("unsubscribe", 2), ("connect", 10), ("disconnect", 8), ("wait", 20), ("network", 3), ("read", 5),
    ("hold", 4), ("ping", 2), ("kick", 1), ("server_publish", 2), ("flood", 2),
)  # fmt: skip


def _random_client(random: Random, index: int) -> ClientSpec:
    version = random.choice((MQTT_5, MQTT_5, MQTT_311, MQTT_31))
    is_5 = version == MQTT_5
    return ClientSpec(
        f"client{index}",
        version,
        random.choice((None, "guest", "staff")),
        random.choice((0, 30, 600)),
        random.choice((None, 1, 2, 10)) if is_5 else None,
        random.choice((None, None, None, 200, 2000)) if is_5 else None,
        random.choice((None, None, 2, 10)) if is_5 else None,
        version != MQTT_31 and random.random() < 0.4,
    )


def _random_faults(random: Random) -> dict[str, Any]:
    return {
        "delay_s": random.choice((0.0, 0.0, 0.01, 0.5, 2.0)),
        "split_bytes": random.choice((0, 0, 1, 3, 50)),
        "capacity_bytes": random.choice((65_536, 65_536, 2000, 100)),
    }


def _random_connect(random: Random) -> dict[str, Any]:
    how: dict[str, Any] = {"clean": random.random() < 0.25, "expiry_s": random.choice((0, 0, 15, 500, 50_000))}
    if random.random() < 0.5:
        how["will"] = {"qos": random.randint(0, 2), "retain": random.random() < 0.3, "delay_s": random.choice((0, 0, 3, 20))}
    return how


def _random_subscribe(random: Random) -> dict[str, Any]:
    shared = random.random() < 0.2
    filters = random.sample(FILTERS, random.randint(1, 3)) if not shared else [random.choice(GROUP_FILTERS)]
    return {
        "filters": filters,
        "qos": random.choice((0, 1, 1, 2, 2)),
        "no_local": not shared and random.random() < 0.1,
        "retain_as_published": random.random() < 0.2,
        "retain_handling": random.choice((0, 0, 1, 2)),
        "identifier": random.choice((0, 0, 0, 7)),
    }


_PLAIN: Final[dict[str, Any]] = {"no_local": False, "retain_as_published": False, "retain_handling": 0, "identifier": 0}
_TEAM: Final[dict[str, Any]] = {"filters": [GROUP_FILTERS[0]], "qos": 2, **_PLAIN}


def _overlap() -> list[Step]:
    """A first message at QoS 0 that one client has by its very topic and another by a wildcard. By chance that is rare; and only at the end is it
    sure to be missed, since nobody is owed QoS 0 who has connected again."""
    steps: list[Step] = []
    for index, filters in enumerate((["a/2"], ["a/+"])):
        steps += [("network", index, {"delay_s": 0.0, "split_bytes": 0, "capacity_bytes": 65_536}), ("read", index, {"on": True})]
        steps.append(("connect", index, {"clean": False, "expiry_s": 500}))
        steps.append(("wait", 0, {"seconds": 5.0709}))
        steps.append(("subscribe", index, {"filters": filters, "qos": 1, **_PLAIN}))
        steps.append(("wait", 0, {"seconds": 5.0709}))
    quiet = {"retain": False, "expiry_s": None, "alias": False, "clear": False}
    return [*steps, ("publish", 0, {"topic": "a/2", "qos": 0, "size": 10, "count": 1, **quiet})]


def _random_publish(random: Random) -> dict[str, Any]:
    return {
        "topic": random.choice(TOPICS + GROUP_TOPICS),
        "qos": random.choice((0, 1, 1, 2, 2)),
        "retain": random.random() < 0.15,
        "size": random.choice((0, 10, 10, 100, 1000, 5000)),
        "count": random.choice((1, 1, 1, 2, 5, 30)),
        "expiry_s": random.choice((None, None, None, None, 1, 60)),
        "alias": random.random() < 0.2,
        "clear": random.random() < 0.03,
    }


def _random_flood(random: Random) -> dict[str, Any]:
    """More than a network and an outbox hold, so that somebody is paused if nobody reads."""
    quiet = {"qos": 0, "retain": False, "expiry_s": None, "alias": False, "clear": False}
    return {"topic": random.choice(TOPICS), "size": 3000, "count": 40, **quiet}


_MAKERS: Final[dict[str, Callable[[Random], dict[str, Any]]]] = {
    "publish": _random_publish,
    "flood": _random_flood,
    "subscribe": _random_subscribe,
    "unsubscribe": lambda random: {"filter": random.choice(FILTERS + GROUP_FILTERS)},
    "connect": _random_connect,
    "disconnect": lambda random: {"how": random.choice(("clean", "cut", "cut", "end", "half-open"))},
    "wait": lambda random: {"seconds": random.choice((0.0, 0.00101, 0.1013, 1.0307, 5.0709, 30.1103, 300.1301))},
    "network": _random_faults,
    "read": lambda random: {"on": random.random() < 0.6},
    "hold": lambda random: {"on": random.random() < 0.5},
    "ping": lambda random: {},
    "kick": lambda random: {},
    "server_publish": lambda random: {"topic": random.choice(TOPICS), "qos": random.randint(0, 2)},
}


def shorten(script: Script, fails: Callable[[Script], bool], runs_max: int = 400) -> Script:
    """The shortest script found that still fails: halves of the steps are dropped, then quarters, down to single ones; then limits."""
    runs = 0

    def still(candidate: Script) -> bool:
        nonlocal runs
        runs += 1
        return runs <= runs_max and fails(candidate)

    size = max(1, len(script.steps) // 2)
    while True:
        start = 0
        dropped = False
        while start < len(script.steps):
            candidate = msgspec.structs.replace(script, steps=script.steps[:start] + script.steps[start + size :])
            if still(candidate):
                script = candidate
                dropped = True
            else:
                start += size
        if runs > runs_max or (size == 1 and not dropped):
            break
        size = max(1, size // 2)
    for name in list(script.limits):
        candidate = msgspec.structs.replace(script, limits={key: value for key, value in script.limits.items() if key != name})
        if still(candidate):
            script = candidate
    for candidate in (
        msgspec.structs.replace(script, overflow={}),
        msgspec.structs.replace(script, access_rules=False),
        msgspec.structs.replace(script, asks_authentication=False),
        msgspec.structs.replace(script, overflow={}, access_rules=False, asks_authentication=False),
    ):
        if candidate != script and still(candidate):
            script = candidate
    return script
