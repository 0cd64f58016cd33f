"""Bans and bound Client Identifiers at a broker's socket: by file, live, and by the program."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from broker import Broker, Config, ConfigError, open_broker
from broker.auth.bans import Ban
from broker.auth.hashes import PasswordHash
from broker.auth.passwords import Passwords
from broker.net import doorkeeper
from broker.reasons import ReasonCode
from broker.wire.packets import ConnAck, Connect, Disconnect, PingReq, PingResp, Properties
from tests.net.mqtt import Client
from tests.net.test_locks import client_of, write_users

YES = ReasonCode.SUCCESS
BANNED = ReasonCode.BANNED
NOT_VALID = ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
THROWN_OUT = ReasonCode.ADMINISTRATIVE_ACTION


async def come(client: Client, client_id: str = "c1", username: str | None = None, password: str | None = None) -> ConnAck:
    await client.send(Connect(client_id, client.version, True, username=username, password=None if password is None else password.encode()))
    answer = await client.receive()
    assert isinstance(answer, ConnAck)
    return answer


async def answer(hub: Broker, client_id: str = "c1", username: str | None = None, password: str | None = None) -> ReasonCode:
    async with client_of(hub) as client:
        return (await come(client, client_id, username, password)).reason


@pytest.fixture
async def hub() -> AsyncIterator[Broker]:
    async with open_broker(listeners=["mqtt://127.0.0.1:0"]) as hub:
        yield hub


def config_of(**keys: Any) -> Config:
    return Config.from_dict({"listeners": [{"port": 0}], "sys_interval_s": 0, **keys})


# ---- bans --------------------------------------------------------------------------------------------------------------------------


async def test_the_file_bans_where_nothing_else_is_asked() -> None:
    banned = [{"client_id": "c1"}, {"username": "ann"}, {"client_id": "old", "until": datetime(2001, 1, 1, tzinfo=UTC)}]
    async with open_broker(config_of(banned=banned)) as hub:
        assert await answer(hub, "c1") == BANNED
        assert await answer(hub, "c2", "ann") == BANNED
        assert await answer(hub, "c2", "ben") == YES
        assert await answer(hub, "old") == YES
        async with client_of(hub) as client:
            client.version = 4
            await client.send(Connect("c1", 4, True))
            assert await client.stream.receive_some(4) == b"\x20\x02\x00\x05"
        async with client_of(hub) as client:
            await client.send(Connect("c2", 5, True, properties=Properties(authentication_method="X")))
            answered = await client.receive()
            assert isinstance(answered, ConnAck)
            assert answered.reason == ReasonCode.BAD_AUTHENTICATION_METHOD
    async with open_broker(config_of(banned=[{"address": "127.0.0.0/8"}])) as hub:
        assert await answer(hub) == BANNED


async def test_nothing_is_hashed_for_who_is_banned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = Passwords.find

    def find(self: Passwords, name: str) -> tuple[PasswordHash, bool]:
        asked.append(name)
        return real(self, name)

    monkeypatch.setattr(Passwords, "find", find)
    config = config_of(banned=[{"username": "ann"}], password_file=write_users(tmp_path / "p", ann="x", ben="x"))
    async with open_broker(config) as hub:
        assert await answer(hub, "c1", "ann", "x") == BANNED
        assert await answer(hub, "c1", "ben", "x") == YES
    assert asked == ["ben"]


async def test_the_name_that_counts_is_the_one_that_was_proven() -> None:
    async def authenticate(request: Any) -> str:
        return "ann"

    async with open_broker(config_of(banned=[{"username": "ann"}]), authenticate=authenticate) as hub:
        assert await answer(hub, "c1", "somebody") == BANNED
        assert hub.clients() == []


async def test_a_reload_throws_out_and_lets_in_again() -> None:
    config = config_of()
    async with open_broker(config) as hub, client_of(hub) as client, client_of(hub) as other:
        assert (await come(client, "c1")).reason == YES
        assert (await come(other, "c2")).reason == YES
        assert hub.reload(config_of(banned=[{"client_id": "c1"}])) == []
        assert await client.receive() == Disconnect(THROWN_OUT)
        assert await client.receive() is None
        await other.send(PingReq())
        assert isinstance(await other.receive(), PingResp)
        assert await answer(hub, "c1") == BANNED
        hub.reload(config)
        assert await answer(hub, "c1") == YES


async def test_a_program_bans_while_it_runs(hub: Broker) -> None:
    async with client_of(hub) as client:
        assert (await come(client, "c1", "ann")).reason == YES
        assert hub.ban(username="ann") == 1
        assert await client.receive() == Disconnect(THROWN_OUT)
    assert await answer(hub, "c1", "ann") == BANNED
    assert await answer(hub, "c1", "ben") == YES
    assert hub.ban(address="127.0.0.1", until=datetime(2001, 1, 1, tzinfo=UTC)) == 0
    assert await answer(hub, "c1") == YES
    assert not hub.unban(client_id="ann")
    assert hub.unban(username="ann")
    assert await answer(hub, "c1", "ann") == YES


async def test_a_reload_leaves_the_programs_bans() -> None:
    config = config_of(banned=[{"client_id": "a"}])
    async with open_broker(config) as hub:
        hub.ban(client_id="b")
        hub.reload(config_of())
        assert [await answer(hub, name) for name in ("a", "b")] == [YES, BANNED]


async def test_what_cannot_be_banned(hub: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected client_id, username or address"):
        hub.ban()
    with pytest.raises(ValueError, match="address: expected an address"):
        hub.ban(address="example.org")
    monkeypatch.setattr(doorkeeper, "BANS_COUNT_MAX", 2)
    hub.ban(client_id="a", until=datetime(2001, 1, 1, tzinfo=UTC))
    hub.ban(client_id="b")
    hub.ban(client_id="c")  # the one that has ended gives way
    with pytest.raises(ValueError, match="2 bans already"):
        hub.ban(client_id="d")


@pytest.mark.parametrize("given", [{"client_id": 5}, {"username": b"ann"}, {"address": 5}, {"client_id": "a", "until": "tomorrow"}])
async def test_other_kinds_are_told_at_once_and_not_at_the_next_connect(hub: Broker, given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=rf"{list(given)[-1]} is a \w+, and no \w+"):
        hub.ban(**given)
    assert hub.bans() == []


def test_the_config_says_what_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(banned=[{}, {"address": "300.1.1.1"}, {"client_id": "x", "until": "tomorrow"}, {"user": "x"}], client_ids=["a*b"])
    found = dict(caught.value.problems)
    assert "expected client_id" in found["banned[0]"]
    assert "192.0.2.0/24" in found["banned[1].address"]
    assert "datetime" in found["banned[2].until"]
    assert "username" in found["banned[3].user"]
    assert "at the end" in found["client_ids"]
    with pytest.raises(ConfigError, match=r"listeners\[0\].client_ids"):
        Config.from_dict({"listeners": [{"client_ids": [""]}]})
    assert config_of(banned=[{"client_id": "x"}]).banned == (Ban(client_id="x"),)


# ---- Client Identifiers --------------------------------------------------------------------------------------------------------------


async def test_only_identifiers_of_the_user_come_in(tmp_path: Path) -> None:
    config = config_of(client_ids=["%u", "%u-*"], password_file=write_users(tmp_path / "p", ann="x"), allow_anonymous=True)
    async with open_broker(config) as hub:
        assert [await answer(hub, name, "ann", "x") for name in ("ann", "ann-1", "ben", "anna", "")] == [YES, YES, NOT_VALID, NOT_VALID, NOT_VALID]
        assert await answer(hub, "ann") == NOT_VALID
        assert await answer(hub, "ben", "ann", "wrong") == ReasonCode.BAD_USER_NAME_OR_PASSWORD  # the identifier is looked at last
        async with client_of(hub) as client:
            client.version = 4
            await client.send(Connect("ben", 4, True, username="ann", password=b"x"))
            assert await client.stream.receive_some(4) == b"\x20\x02\x00\x02"


async def test_nobody_throws_out_another_users_client(tmp_path: Path) -> None:
    config = config_of(client_ids=["%u-*"], password_file=write_users(tmp_path / "p", ann="x", ben="x"))
    async with open_broker(config) as hub, client_of(hub) as client:
        assert (await come(client, "ann-1", "ann", "x")).reason == YES
        assert await answer(hub, "ann-1", "ben", "x") == NOT_VALID
        await client.send(PingReq())
        assert isinstance(await client.receive(), PingResp)


async def test_called_as_the_user() -> None:
    async with open_broker(config_of(username_as_client_id=True)) as hub:
        async with client_of(hub) as client:
            told = await come(client, "whatever", "ann")
            assert told.properties.assigned_client_identifier is None
            assert [one.client_id for one in hub.clients()] == ["ann"]
            async with client_of(hub) as other:
                told = await come(other, "", "ann")
                assert told.properties.assigned_client_identifier == "ann"
                assert await client.receive() == Disconnect(ReasonCode.SESSION_TAKEN_OVER)
        assert await answer(hub, "whatever") == ReasonCode.NOT_AUTHORIZED
        hub.ban(client_id="ann")
        assert await answer(hub, "whatever", "ann") == BANNED


async def test_a_listener_has_its_own_and_a_reload_takes_it_over() -> None:
    listeners: list[dict[str, Any]] = [{"port": 0}, {"port": 0, "host": "127.0.0.2", "client_ids": ["b*"], "username_as_client_id": False}]
    config = Config.from_dict({"listeners": listeners, "client_ids": ["a*"], "sys_interval_s": 0})
    async with open_broker(config) as hub:

        async def answers(client_id: str) -> list[ReasonCode]:
            found = []
            for url in hub.urls:
                async with client_of(hub, url) as client:
                    found.append((await come(client, client_id)).reason)
            return found

        assert await answers("a1") == [YES, NOT_VALID]
        assert await answers("b1") == [NOT_VALID, YES]
        assert hub.reload(Config.from_dict({"listeners": [listeners[0], listeners[1] | {"client_ids": ["c*"]}], "sys_interval_s": 0})) == []
        assert await answers("c1") == [YES, YES]
        assert await answers("b1") == [YES, NOT_VALID]


async def test_in_process_clients_are_looked_at_too(hub: Broker) -> None:
    hub.ban(client_id="c1")
    async with trio.open_nursery() as nursery:
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(hub.attach, theirs)
        assert (await come(Client(ours))).reason == BANNED
        await ours.aclose()
