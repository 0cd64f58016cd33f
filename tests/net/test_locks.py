"""Passwords and access rules at the sockets: who comes in where, what it costs to be wrong, and what a reload changes."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from broker import Broker, Config, ConfigError, ConnectRequest, open_broker
from broker.auth.hashes import Argon2Hash, MosquittoHash, PasswordHash, hash_password
from broker.auth.passwords import Passwords
from broker.net import doorkeeper, doors, locks
from broker.net.listener import Listener
from broker.net.locks import Guard
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Disconnect, Packet, Properties, PubAck, Publish, WillMessage
from tests.net.mqtt import Client

QUICK = 5
BAD = ReasonCode.BAD_USER_NAME_OR_PASSWORD
NO = ReasonCode.NOT_AUTHORIZED
YES = ReasonCode.SUCCESS


def write_users(path: Path, **users: str) -> str:
    path.write_text("".join(f"{name}:{hash_password(password.encode(), iterations=QUICK).text}\n" for name, password in users.items()))
    return str(path)


@asynccontextmanager
async def client_of(hub: Broker, url: str | None = None) -> AsyncIterator[Client]:
    host, _, port = (url or hub.urls[0]).partition("://")[2].rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    try:
        yield Client(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def connect(client: Client, name: str | None, password: str | None, **fields: Any) -> Packet | None:
    await client.send(Connect("c1", 5, True, username=name, password=None if password is None else password.encode(), **fields))
    return await client.receive()


async def answer_to(hub: Broker, name: str | None, password: str | None, url: str | None = None) -> ReasonCode:
    async with client_of(hub, url) as client:
        packet = await connect(client, name, password)
        assert isinstance(packet, ConnAck)
        return packet.reason


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting after a failure has tests of its own."""
    monkeypatch.setattr("broker.auth.throttle.DELAY_S_MIN", 0.0)


# ---- who comes in --------------------------------------------------------------------------------------------------------


async def test_a_password_file_decides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(listeners=(Listener(port=0),), password_file=write_users(tmp_path / "p", ann="geheim"))
    async with open_broker(config) as hub:
        assert await answer_to(hub, "ann", "geheim") == YES
        assert await answer_to(hub, "ann", "geheim") == YES  # the second time by its digest
        assert await answer_to(hub, "ann", "wrong") == BAD
        assert await answer_to(hub, "ann", None) == BAD
        assert await answer_to(hub, "ben", "geheim") == BAD
        assert await answer_to(hub, None, None) == NO
        assert "user=None: it gave no user name (0x87)" in caplog.text
        async with client_of(hub) as client:
            packet = await connect(client, "ann", "geheim", properties=Properties(authentication_method="SCRAM"))
            assert isinstance(packet, ConnAck)
            assert packet.reason == ReasonCode.BAD_AUTHENTICATION_METHOD


async def test_anonymous_clients_may_stand_beside_users(tmp_path: Path) -> None:
    config = Config(listeners=(Listener(port=0),), password_file=write_users(tmp_path / "p", ann="geheim"), allow_anonymous=True)
    async with open_broker(config) as hub:
        assert await answer_to(hub, None, None) == YES
        assert await answer_to(hub, "ann", "geheim") == YES
        assert await answer_to(hub, "ben", "x") == BAD


async def test_a_listener_decides_for_itself(tmp_path: Path) -> None:
    own = Listener(port=0, password_file=write_users(tmp_path / "own", ben="x"))
    config = Config(
        listeners=(Listener(port=0), own, Listener(port=0, allow_anonymous=True, host="127.0.0.2")),
        password_file=write_users(tmp_path / "all", ann="x"),
        allow_anonymous=False,
    )
    async with open_broker(config) as hub:
        first, second, third = hub.urls
        assert [await answer_to(hub, "ann", "x", url) for url in hub.urls] == [YES, BAD, YES]
        assert [await answer_to(hub, "ben", "x", url) for url in (first, second)] == [BAD, YES]
        assert [await answer_to(hub, None, None, url) for url in (first, second, third)] == [NO, NO, YES]


async def test_a_listener_with_its_own_file_is_not_opened_by_the_word_of_all(tmp_path: Path) -> None:
    own = Listener(port=0, password_file=write_users(tmp_path / "own", ben="x"))
    async with open_broker(Config(listeners=(own,), allow_anonymous=True)) as hub:
        assert await answer_to(hub, None, None) == NO


async def test_a_password_file_is_enough_to_listen_for_others(tmp_path: Path) -> None:
    config = Config(listeners=(Listener(host="0.0.0.0", port=0),), password_file=write_users(tmp_path / "p", ann="x"))
    async with open_broker(config):
        pass


async def test_a_programs_own_hooks_decide_alone(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic deny #\n")
    config = Config(listeners=(Listener(port=0),), password_file=write_users(tmp_path / "p", ann="x"), acl_file=str(tmp_path / "acl"))

    async def authenticate(request: ConnectRequest) -> str | None:
        return "known" if request.password == b"hook" else None

    async with open_broker(config, authenticate=authenticate, authorize=lambda user, client_id, action, topic: topic == user) as hub:
        assert await answer_to(hub, "ann", "x") == BAD
        async with client_of(hub) as client:
            assert isinstance(await connect(client, "ann", "hook"), ConnAck)
            await client.send(Publish("known", b"", qos=1, packet_id=1))
            packet = await client.receive()
            assert isinstance(packet, PubAck)
            assert packet.reason == ReasonCode.NO_MATCHING_SUBSCRIBERS


async def test_mistakes_in_files_open_nothing(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("ann:plain\n")
    with pytest.raises(ConfigError, match="broker passwd -U"):
        async with open_broker(Config(listeners=(Listener(port=0),), password_file=str(tmp_path / "p"))):
            pass


# ---- the cost of being wrong -----------------------------------------------------------------------------------------------


def asking(username: str, password: bytes, peer: str = "192.0.2.1:1") -> Any:
    """What `Guard.check` looks at."""
    return SimpleNamespace(username=username, password=password, peer=peer)


async def verify_here(work: Any, *arguments: Any, limiter: Any = None) -> Any:
    await trio.lowlevel.checkpoint()
    return work(*arguments)


@pytest.fixture
def users() -> Passwords:
    return Passwords({"ann": hash_password(b"geheim", iterations=QUICK)})


async def test_a_failure_waits_longer_each_time(users: Passwords, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.auth.throttle.DELAY_S_MIN", 0.25)
    monkeypatch.setattr("trio.to_thread.run_sync", verify_here)  # a virtual clock does not wait for threads
    guard = Guard()
    waits = []
    for name in ("ann", "nobody", "ann"):
        began = trio.current_time()
        assert await guard.check(users, asking(name, b"wrong")) is None
        waits.append(trio.current_time() - began)
    assert waits == [pytest.approx(seconds, rel=0.02) for seconds in (0.25, 0.5, 1.0)]  # a little is forgiven meanwhile
    began = trio.current_time()
    assert await guard.check(users, asking("ann", b"geheim", "198.51.100.1:1")) == "ann"
    assert trio.current_time() == began


async def test_attempts_from_an_address_that_fails_queue_and_known_users_pass(
    users: Passwords, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.auth.throttle.DELAY_S_MIN", 4.0)
    monkeypatch.setattr("trio.to_thread.run_sync", verify_here)
    guard = Guard()
    assert await guard.check(users, asking("ann", b"geheim")) == "ann"
    for _ in range(4):
        guard.throttle.failed("192.0.2.1", trio.current_time())
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(guard.check, users, asking("ann", b"%d" % number))
        await trio.testing.wait_all_tasks_blocked()
        assert await guard.check(users, asking("ann", b"geheim")) == "ann"
        assert trio.current_time() == began
    assert trio.current_time() - began >= 40
    assert guard._turns == {}


async def test_hashing_keeps_the_loop_free_and_is_limited(users: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """While every thread hashes, others are served; no more than the limit run at a time."""
    running = 0
    most = 0
    lock = threading.Lock()
    go = threading.Event()

    def verifies(self: MosquittoHash, password: bytes) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert go.wait(10)
        with lock:
            running -= 1
        return True

    monkeypatch.setattr(MosquittoHash, "verifies", verifies)
    guard = Guard()
    guard.limiter.total_tokens = 2
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(guard.check, users, asking("ann", b"%d" % number))
            while most < 2:
                await trio.lowlevel.checkpoint()
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            go.set()
    assert most == 2


async def test_unknown_names_cost_the_same_work(users: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted and not timed: the same function with the same number of iterations, whatever the name."""
    seen = []

    def verifies(self: MosquittoHash, password: bytes) -> bool:
        seen.append(self.iterations)
        return False

    monkeypatch.setattr(MosquittoHash, "verifies", verifies)
    guard = Guard()
    for name in ("ann", "nobody", ""):
        assert await guard.check(users, asking(name, b"x", "unix")) is None
    assert seen == [QUICK] * 3


async def test_unknown_names_cost_the_same_work_where_hashes_are_of_several_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name always the same, and each kind comes up for strangers as it does for users."""
    seen = []

    def counted(self: PasswordHash, password: bytes) -> bool:
        seen.append(type(self))
        return False

    monkeypatch.setattr(MosquittoHash, "verifies", counted)
    monkeypatch.setattr(Argon2Hash, "verifies", counted)
    mixed = Passwords({"ann": hash_password(b"x", iterations=QUICK), "ben": hash_password(b"x", "argon2id", 1)})
    guard = Guard()
    for name in ("ann", "ben", *map(str, range(50)), *map(str, range(50))):
        assert await guard.check(mixed, asking(name, b"x", "unix")) is None
    assert seen[:2] == [MosquittoHash, Argon2Hash]
    assert seen[2:52] == seen[52:]
    assert set(seen[2:]) == {MosquittoHash, Argon2Hash}


async def test_argon2id_lets_in(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text(f"ann:{hash_password(b'geheim', 'argon2id', 1).text}\n")
    async with open_broker(Config(listeners=(Listener(port=0),), password_file=str(path))) as hub:
        assert await answer_to(hub, "ann", "geheim") == YES
        assert await answer_to(hub, "ann", "wrong") == BAD


# ---- what they may do --------------------------------------------------------------------------------------------------------


async def test_access_is_by_listener_and_a_session_takes_that_of_its_last(tmp_path: Path) -> None:
    (tmp_path / "all").write_text("topic read a/#\n")
    (tmp_path / "own").write_text("topic #\n")
    config = Config(listeners=(Listener(port=0), Listener(port=0, host="127.0.0.2", acl_file=str(tmp_path / "own"))), acl_file=str(tmp_path / "all"))
    async with open_broker(config) as hub:
        closed, free = hub.urls
        for url, reason in ((closed, NO), (free, ReasonCode.NO_MATCHING_SUBSCRIBERS), (closed, NO)):
            async with client_of(hub, url) as client:
                await client.connect("c1", session_expiry_s=100, clean_start=False)
                await client.send(Publish("b", b"", qos=1, packet_id=1))
                packet = await client.receive()
                assert isinstance(packet, PubAck)
                assert packet.reason == reason
                await client.send(Disconnect(YES))
                assert await client.receive() is None


async def test_a_will_is_asked_for_when_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "acl"
    path.write_text("topic write will/#\ntopic read #\n")
    config = Config(listeners=(Listener(port=0),), acl_file=str(path))
    async with open_broker(config) as hub, hub.subscribe("#") as messages:
        for topic in ("other", "will/one"):
            async with client_of(hub) as client:
                packet = await connect(client, None, None, will=WillMessage(topic, b"gone"))
                assert isinstance(packet, ConnAck)
                assert packet.reason == YES
        with trio.fail_after(5):
            assert (await anext(aiter(messages))).topic == "will/one"
        assert hub.statistics()["dropped_not_authorized"] == 1


async def test_rules_in_the_config(tmp_path: Path) -> None:
    config = Config.from_dict({"listeners": [{"port": 0}], "sys_interval_s": 0, "access": [{"topic": "a/%c", "may": "write"}]})
    async with open_broker(config) as hub, client_of(hub) as client:
        await client.connect("c1")
        for topic, reason in (("a/c1", ReasonCode.NO_MATCHING_SUBSCRIBERS), ("a/c2", NO)):
            await client.send(Publish(topic, b"", qos=1, packet_id=1))
            packet = await client.receive()
            assert isinstance(packet, PubAck)
            assert packet.reason == reason


# ---- reload ------------------------------------------------------------------------------------------------------------------


async def test_reload_takes_over_passwords_and_rules_and_keeps_clients(tmp_path: Path) -> None:
    users = tmp_path / "p"
    rules = tmp_path / "acl"
    write_users(users, ann="one")
    rules.write_text("user ann\ntopic read a\ntopic write b\n")
    config = Config(listeners=(Listener(port=0),), password_file=str(users), acl_file=str(rules), sys_interval_s=0)
    async with open_broker(config) as hub, client_of(hub) as client:
        assert isinstance(await connect(client, "ann", "one"), ConnAck)
        await client.subscribe("#")

        async def allowed() -> ReasonCode:
            await client.send(Publish("b", b"", qos=1, packet_id=1))
            packet = await client.receive()
            assert isinstance(packet, PubAck)
            return packet.reason

        assert await allowed() == ReasonCode.NO_MATCHING_SUBSCRIBERS
        await hub.publish("a", b"one")
        packet = await client.receive()
        assert isinstance(packet, Publish)

        rules.write_text("user ann\ntopic raed a\n")
        with pytest.raises(ConfigError, match="line 2"):
            hub.reload(config)
        assert await allowed() == ReasonCode.NO_MATCHING_SUBSCRIBERS

        rules.write_text("user ann\ntopic read b\n")
        write_users(users, ann="two")
        assert hub.reload(config) == []
        await hub.publish("a", b"not for it")
        assert await allowed() == NO
        assert await answer_to(hub, "ann", "one") == BAD
        assert await answer_to(hub, "ann", "two") == YES


async def test_reload_brings_locks_where_none_were_and_takes_them_away(tmp_path: Path) -> None:
    open_to_all = Config(listeners=(Listener(port=0),))
    locked = Config(listeners=(Listener(port=0, password_file=write_users(tmp_path / "p", ann="x")),))
    async with open_broker(open_to_all) as hub:
        assert await answer_to(hub, "ann", "wrong") == YES
        assert hub.reload(locked) == []
        assert await answer_to(hub, "ann", "wrong") == BAD
        assert hub.reload(open_to_all) == []
        assert await answer_to(hub, "ann", "wrong") == YES


async def test_reload_tells_listeners_with_port_0_apart_by_their_order(tmp_path: Path) -> None:
    """They said the same before, or even are the same; where their number changes nobody knows which is which, and each stays as it is."""
    anybody = Listener(port=0)
    locked = Listener(port=0, password_file=write_users(tmp_path / "p", ann="x"))

    async def answers(hub: Broker) -> list[ReasonCode]:
        return [await answer_to(hub, "ann", "wrong", url) for url in hub.urls]

    async with open_broker(Config(listeners=(anybody, anybody))) as hub:
        assert await answers(hub) == [YES, YES]
        for listeners, wanted in (((locked, anybody), [BAD, YES]), ((anybody, locked), [YES, BAD]), ((locked, locked), [BAD, BAD])):
            assert hub.reload(Config(listeners=listeners)) == []
            assert await answers(hub) == wanted
        assert hub.reload(Config(listeners=(anybody,))) == ["listeners"]
        assert hub.reload(Config(listeners=(Listener(port=0, protocol="websocket"), anybody))) == ["listeners"]
        assert await answers(hub) == [BAD, BAD]


async def test_reload_refuses_to_open_to_the_world(tmp_path: Path) -> None:
    locked = Config(listeners=(Listener(host="0.0.0.0", port=0),), password_file=write_users(tmp_path / "p", ann="x"))
    async with open_broker(locked) as hub:
        with pytest.raises(ConfigError, match="other machines"):
            hub.reload(Config(listeners=(Listener(host="0.0.0.0", port=0),)))


async def test_reload_takes_over_overflow_and_a_listeners_small_keys() -> None:
    config = Config.from_dict({"listeners": [{"port": 0}], "overflow": [{"filter": "a", "rule": "refuse"}]})
    async with open_broker(config) as hub:
        changed = Config.from_dict({"listeners": [{"port": 0, "connections_count_max": 1}], "overflow": [{"filter": "a", "rule": "latest"}]})
        assert hub.reload(changed) == []
        assert hub._engine.state.overflow.rule_for("a") == "latest"
        assert hub._server.bound[0].listener.connections_count_max == 1
        assert hub.reload(Config.from_dict({"listeners": [{"port": 0, "backlog": 7}]})) == ["listeners"]
        await hub.shutdown()
        assert hub.reload(Config.from_dict({"listeners": [{"port": 0, "nodelay": False, "tcp_keepalive_s": 9}]})) == []  # there is no socket any more


async def test_files_that_change_are_read_again_once_they_hold_still(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "acl"
    path.write_text("topic read a\n")
    async with open_broker(Config(listeners=(), acl_file=str(path), sys_interval_s=0)) as hub:
        may = hub._engine.state.access.may
        assert may(None, "x", "receive", "a")
        path.write_text("topic read a\ntopic raed b\n")
        await trio.sleep(doorkeeper.WATCH_INTERVAL_S * 3)
        assert may(None, "x", "receive", "a")
        assert [record.levelname for record in caplog.records if "is not used" in record.message] == ["ERROR"]
        await trio.sleep(doorkeeper.WATCH_INTERVAL_S * 10)
        assert sum("is not used" in record.message for record in caplog.records) == 1
        path.write_text("topic read b and more\ntopic read b\n")
        await trio.sleep(doorkeeper.WATCH_INTERVAL_S * 3)
        assert may(None, "x", "receive", "b")
        assert not may(None, "x", "receive", "a")


@pytest.mark.parametrize("fault", [ConfigError([("", "cannot be read: permission denied")], "acl"), FileNotFoundError(2, "vanished")])
async def test_a_file_that_could_not_be_read_is_tried_again(
    fault: Exception, tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `chmod`, which leaves its time and its size alone. It was read when it changed the next time, which may be months; one that
    vanished in the middle of reading ended the broker."""
    path = tmp_path / "acl"
    path.write_text("topic read a\n")

    def load(path: str) -> None:
        raise fault

    async with open_broker(Config(listeners=(), acl_file=str(path), sys_interval_s=0)) as hub:
        may = hub._engine.state.access.may
        path.write_text("topic read another\n")
        with monkeypatch.context() as patch:
            patch.setattr(doors, "load_rules", load)
            await trio.sleep(doorkeeper.RETRY_INTERVAL_S * 3)
        assert may(None, "x", "receive", "a")
        await trio.sleep(doorkeeper.RETRY_INTERVAL_S * 2)
        assert may(None, "x", "receive", "another")
        assert sum("is not used" in record.message for record in caplog.records) == 1


def test_the_limit_of_threads_leaves_a_core() -> None:
    assert 1 <= locks.HASHES_COUNT_MAX < math.inf


async def test_those_who_have_failed_do_not_stand_before_everybody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty addresses that guess had forty hashes in line, six seconds of them, before somebody who came for the first time."""
    hashed: list[str] = []

    async def hash_in_line(verify: Any, password: bytes, *, limiter: trio.CapacityLimiter) -> bool:
        async with limiter:
            await everybody_stands_in_line.wait()
            hashed.append(password.decode())
        return password == b"right"

    monkeypatch.setattr(trio.to_thread, "run_sync", hash_in_line)
    everybody_stands_in_line = trio.Event()
    guard = Guard()
    guard.limiter = trio.CapacityLimiter(1)
    guard.suspects = trio.CapacityLimiter(1)
    passwords = Passwords({"ann": hash_password(b"right", iterations=QUICK)})

    async def ask(address: str, password: str) -> None:
        request: Any = SimpleNamespace(username="ann", password=password.encode(), peer=f"{address}:50000")
        if await guard.check(passwords, request) is not None:
            came_in.set()

    came_in = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(40):
            address = f"192.0.2.{number}"
            guard.throttle.failed(address, trio.current_time())
            nursery.start_soon(ask, address, "wrong")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "198.51.100.1", "right")
        await trio.testing.wait_all_tasks_blocked()
        everybody_stands_in_line.set()
        await came_in.wait()
        nursery.cancel_scope.cancel()
    assert hashed.index("right") <= 2
