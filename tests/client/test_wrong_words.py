"""What a program passes by mistake is refused where it passes it, in one line that says what was expected; nothing is sent."""

from __future__ import annotations

import math
import traceback
from typing import Any

import pytest
import trio
import trio.testing

from broker import InvalidTopic, Listener, Reconnect, ScramSHA256, Token, Will, connect, open_broker

PAIRS: list[Any] = [{"a": 1}, {"a": b"x"}, [("a",)], [("a", "b", "c")], [1], "ab"]


@pytest.mark.parametrize("pairs", PAIRS, ids=str)
async def test_user_properties_are_pairs_of_text(pairs: Any) -> None:
    async with open_broker() as hub, connect(hub) as client:
        for publish in (client.publish, hub.publish):
            with pytest.raises(TypeError, match=r"user_properties are \(name, value\) pairs of str, not "):
                await publish("a", user_properties=pairs)
        assert client.connected


async def test_what_is_wrong_with_a_topic_is_one_line_however_long_the_topic() -> None:
    long = "x" * 70_000
    async with open_broker() as hub, connect(hub) as client:
        for publish in (client.publish, hub.publish):
            with pytest.raises(InvalidTopic, match=r"^'x{100}'\.\.\. is not a topic name: ") as caught:
                await publish(long)
            assert len(str(caught.value)) < 250
        with pytest.raises(InvalidTopic, match=r"^'a/#/b' is not a topic filter: # must be the last"):
            async with client.subscribe("a/#/b"):
                pytest.fail("entered")
        with pytest.raises(InvalidTopic, match=r"^'a/#/b' is not a topic filter: # must be the last"):
            async with hub.subscribe("a/#/b"):
                pytest.fail("entered")
        with pytest.raises(InvalidTopic, match=r"^'a/#/b' is not a topic filter: # must be the last"):
            hub.retained("a/#/b")


@pytest.mark.parametrize(
    ("where", "options", "said"),
    [
        (None, {}, "where must be a URL or a Broker, not NoneType"),
        ("mqtt://localhost", {"username": 5}, "username must be str, not int"),
        ("mqtt://localhost", {"client_id": b"x"}, "client_id must be str, not bytes"),
        ("mqtt://localhost", {"client_id": None}, "client_id must be str, not NoneType"),
        ("mqtt://localhost", {"username": "u", "password": 5}, "password must be str or bytes, not int"),
        ("mqtt://localhost", {"keep_alive_s": 1.5}, "keep_alive_s must be a whole number, not float"),
        ("mqtt://localhost", {"close_grace_s": "5"}, "close_grace_s must be a number, not str"),
        ("mqtt://localhost", {"will": "gone"}, "will must be a Will, not str"),
        ("mqtt://localhost", {"auth": "token"}, r"auth must be ScramSHA256\(user, password\), Token\(token\)"),
        ("mqtt://localhost", {"auth": Token}, r"auth must be ScramSHA256\(user, password\), Token\(token\)"),
        ("mqtt://localhost", {"reconnect": True}, "reconnect must be a Reconnect, or None for never, not bool"),
    ],
)
def test_connect(where: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        connect(where, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"client_id": "x" * 70_000}, "client_id: a string of 70000 bytes"),
        ({"username": "x\0"}, r"username: a string with U\+0000"),
        ({"username": "x", "password": b"x" * 70_000}, "CONNECT cannot be sent so: 70000 bytes"),
        ({"user_properties": {"a": "x" * 70_000}}, "CONNECT cannot be sent so: a string of 70000 bytes"),
        ({"will": Will("a", content_type="x" * 70_000)}, "CONNECT cannot be sent so: a string of 70000 bytes"),
        ({"close_grace_s": math.nan}, "close_grace_s must be 0 or more seconds, not nan"),
        ({"connect_timeout_s": -1}, "connect_timeout_s must be 0 or more seconds, not -1"),
        ({"session_expiry_s": math.nan}, "session_expiry_s must be between 0 and 4,294,967,295 seconds, not nan"),
    ],
)
def test_what_no_connect_can_say(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        connect("mqtt://localhost", **options)


def test_what_proves_is_text() -> None:
    wrong: Any = b"secret"
    with pytest.raises(TypeError, match="token must be str, or a function that gives it, not bytes"):
        Token(wrong)
    with pytest.raises(TypeError, match="password must be str, not bytes"):
        ScramSHA256("ann", wrong)
    with pytest.raises(TypeError, match="must give str, not bytes"):
        Token(lambda: wrong).begin()


@pytest.mark.parametrize("wrong", [{"delay_s": math.nan}, {"delay_s_max": -1}, {"give_up_after_s": math.nan}], ids=str)
def test_a_policy_of_no_time(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more seconds"):
        Reconnect(**wrong)  # type: ignore[arg-type]  # none of them is `first`


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://ann:[hidden]@localhost",
        "mqtt://ann:hidden\u2100@localhost",  # in a host it would stand for "a/c"
        "mqtt://localhost?password=a&hidden",
        "mqtt://localhost?keep_alive_s=hidden",
    ],
)
def test_no_mistake_in_a_url_shows_what_is_in_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        connect(url)
    assert "hidden" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("wrong", [5, "x"])
async def test_correlation_data_are_bytes(wrong: Any) -> None:
    """Of a number five zeros were sent."""
    async with open_broker() as hub, connect(hub) as client:
        with pytest.raises(TypeError, match=f"correlation_data must be bytes-like, not {type(wrong).__name__}"):
            await client.publish("a", correlation_data=wrong)


async def test_topics_and_filters_are_text() -> None:
    wrong: Any
    async with open_broker() as hub, connect(hub) as client:
        for wrong in (b"a", 5, ["a"]):
            for publish in (client.publish, hub.publish):
                with pytest.raises(TypeError, match=f"a topic must be str, not {type(wrong).__name__}"):
                    await publish(wrong)
            for subscribe in (client.subscribe, hub.subscribe):
                with pytest.raises(TypeError, match=f"a topic filter must be str, not {type(wrong).__name__}"):
                    async with subscribe(wrong):
                        pytest.fail("entered")
            with pytest.raises(TypeError, match="a topic filter must be str"):
                await client.unsubscribe(wrong)
        with pytest.raises(TypeError, match="a topic filter must be str"):
            client.subscribe(wrong, group="g")


@pytest.mark.parametrize("away", [False, True])
async def test_what_no_subscribe_can_say_is_never_under_way(away: bool, autojump_clock: trio.testing.MockClock) -> None:
    """It waited for an answer that nothing had asked for, and where it waited for a connection it ended the next one."""
    too_long: Any = {"a": "x" * 70_000}
    with trio.fail_after(60):
        async with open_broker() as hub, connect(hub, client_id="me", session_expiry_s=60) as client:
            if away:
                hub.drop_clients()
                while client.connected:
                    await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ValueError, match="70000 bytes"):
                async with client.subscribe("a", user_properties=too_long):
                    pytest.fail("entered")
            with pytest.raises(ValueError, match="70000 bytes"):
                await client.unsubscribe("a", user_properties=too_long)
            await client.wait_connected()
            left_at = trio.current_time()
        assert trio.current_time() == left_at


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"config": 5}, "config must be a Config"),
        ({"listeners": Listener(port=0)}, "listeners is a list"),
        ({"listeners": [5]}, "a listener is a Listener, a URL or a trio.SocketListener, not int"),
        ({"overflow": "latest"}, "overflow maps Topic Filters to rules, and is no str"),
    ],
)
async def test_open_broker(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        async with open_broker(**options):
            pytest.fail("entered")


async def test_a_topic_alias_that_is_no_whole_number_ends_nothing() -> None:
    alias: Any = 1.5
    async with open_broker() as hub, connect(hub) as client:
        for qos in (0, 1):
            with pytest.raises(TypeError, match="topic_alias must be a whole number, not float"):
                await client.publish("a", qos=qos, topic_alias=alias)
        async with client.pipeline() as pipeline:
            with pytest.raises(TypeError, match="topic_alias must be a whole number, not float"):
                await pipeline.publish("a", topic_alias=alias)
            await pipeline.publish("a", qos=1)
        assert client.core.idle
