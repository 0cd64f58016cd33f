"""With a store, to come in costs who leaves nothing behind no turn of the disk: a full one must not shut out those who keep nothing on it."""

from __future__ import annotations

import pytest

from broker.core.engine import Engine
from broker.core.link import Link
from broker.wire.codec import encode
from broker.wire.packets import MQTT_5, NO_PROPERTIES, Connect, Disconnect, Properties, Publish, WillMessage

LASTING = Properties(session_expiry_interval=3600)


@pytest.fixture
def engine() -> Engine:
    return Engine(new_client_id=lambda: "assigned", lasting=True)


def connect(engine: Engine, client_id: str, properties: Properties = NO_PROPERTIES, will: WillMessage | None = None) -> Link:
    link = engine.attach(client_id, 0.0)
    engine.receive(link, encode(Connect(client_id, MQTT_5, True, 0, will, None, None, properties), MQTT_5), 0.0)
    return link


def is_told(engine: Engine, link: Link) -> bool:
    return bool(engine.data_to_send(link))


def write(engine: Engine) -> None:
    changes = engine.take_changes(0.0, 0.0)
    assert changes is not None
    engine.committed(changes.number)


def test_one_that_keeps_nothing_does_not_wait_for_what_others_keep(engine: Engine) -> None:
    assert not is_told(engine, connect(engine, "keeps", LASTING))
    stranger = connect(engine, "stranger")
    assert is_told(engine, stranger)
    engine.receive(stranger, encode(Publish("a", b"", 1, packet_id=1), MQTT_5), 0.0)
    assert is_told(engine, stranger)


def test_one_with_a_will_is_told_when_that_is_on_disk(engine: Engine) -> None:
    link = connect(engine, "will", will=WillMessage("status", b"gone"))
    assert not is_told(engine, link)
    write(engine)
    assert is_told(engine, link)


def test_one_that_had_a_session_is_told_when_that_is_gone_from_the_disk(engine: Engine) -> None:
    connect(engine, "changes", LASTING)
    write(engine)
    anew = connect(engine, "changes")
    assert not is_told(engine, anew)
    engine.receive(anew, encode(Disconnect(), MQTT_5), 0.0)
    again = connect(engine, "changes")  # that one was told nothing, and this one asks the same
    assert not is_told(engine, again)
    write(engine)
    assert is_told(engine, again)
    engine.receive(again, encode(Disconnect(), MQTT_5), 0.0)
    assert is_told(engine, connect(engine, "changes"))
