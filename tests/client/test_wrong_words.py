"""What a program passes by mistake is refused where it passes it, in one line that says what was expected; nothing is sent."""

from __future__ import annotations

from typing import Any

import pytest

from broker import InvalidTopic, connect, open_broker

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
    ],
)
def test_connect(where: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        connect(where, **options)
