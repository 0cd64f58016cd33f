"""A broker in a thread, from code that knows no Trio."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import trio

from broker.errors import InvalidTopic, ListenError, StoreError
from broker.thread import BrokerThread, broker_thread
from broker.wire.codec import encode
from broker.wire.packets import Connect, Properties, Publish, Subscribe, SubscriptionRequest


def connected(host: str, port: int, client_id: str = "a") -> socket.socket:
    peer = socket.create_connection((host, port), timeout=10)
    peer.sendall(encode(Connect(client_id), 5))
    assert peer.recv(4096)[:1] == b"\x20"
    return peer


def test_what_clients_and_the_broker_publish_is_seen() -> None:
    with broker_thread() as broker:
        assert broker.url == f"mqtt://{broker.host}:{broker.port}"
        with connected(broker.host, broker.port) as peer:
            peer.sendall(encode(Publish("thermostat/state", b"idle"), 5) + encode(Publish("thermostat/state", b"hot"), 5))
            first, second = broker.wait_for("thermostat/+", count=2)
            assert (first.text, second.text) == ("idle", "hot")
        broker.publish("mine", "1", retain=True)
        assert broker.wait_for("mine")[0].retain
        with pytest.raises(InvalidTopic):
            broker.publish("a/#")


def test_timeout_lists_what_came() -> None:
    with broker_thread() as broker:
        with pytest.raises(TimeoutError, match=r"0 of 1 messages for 'x' came in 0\.01 s; nothing else either"):
            broker.wait_for("x", timeout_s=0.01)
        broker.publish("y", "1")
        with pytest.raises(TimeoutError, match=r"what came: y b'1'"):
            broker.wait_for("x", timeout_s=0.01)
        with pytest.raises(ValueError, match="not a topic filter"):
            broker.wait_for("a/#/b")


def test_a_broker_that_fails_is_not_waited_for() -> None:
    def fail() -> None:
        raise ValueError("a fault on purpose")

    broker = BrokerThread(None, ["mqtt://127.0.0.1:0"], {})
    broker.start()
    assert broker._token is not None
    broker._token.run_sync_soon(fail)
    with pytest.raises(RuntimeError, match="has failed"):
        broker.wait_for("x", timeout_s=20)
    with pytest.raises(trio.TrioInternalError):
        broker.stop()


def test_clear_forgets_messages_and_retained_ones() -> None:
    with broker_thread() as broker:
        broker.publish("a", "1", retain=True)
        broker.clear()
        with pytest.raises(TimeoutError):
            broker.wait_for("#", timeout_s=0.01)
        assert broker._call(lambda hub: list(hub.retained())) == []


def test_stop_and_start_on_the_same_port() -> None:
    with broker_thread() as broker:
        url = broker.url
        with connected(broker.host, broker.port) as peer:
            stopper = threading.Thread(target=broker.stop)
            stopper.start()
            assert peer.recv(4096) == b"\xe0\x01\x8b"
            assert peer.recv(4096) == b""
        stopper.join(10)
        with pytest.raises(RuntimeError, match="stopped"):
            broker.publish("a")
        with pytest.raises(ConnectionRefusedError):
            connected(broker.host, broker.port)
        broker.start()
        assert broker.url == url
        connected(broker.host, broker.port).close()


def test_with_a_store_stop_and_start_keep_what_is_to_outlive_them(tmp_path: Path) -> None:
    lasting = Connect("a", clean_start=False, properties=Properties(session_expiry_interval=3600))
    with broker_thread(store=tmp_path / "store") as broker:
        with socket.create_connection((broker.host, broker.port), timeout=10) as peer:
            peer.sendall(encode(lasting, 5) + encode(Subscribe(1, (SubscriptionRequest("door", 1),)), 5))
            received = b""
            while b"\x90" not in received:
                received += peer.recv(4096)
        broker.publish("state", "idle", retain=True)
        broker.stop()
        broker.start()
        assert [message.topic for message in broker._call(lambda hub: hub.retained())] == ["state"]
        broker.publish("door", "open", qos=1)
        broker.stop()
        broker.clear()
        broker.start()
        assert broker._call(lambda hub: list(hub.retained())) == []
        with socket.create_connection((broker.host, broker.port), timeout=10) as peer:
            peer.sendall(encode(lasting, 5))
            received = b""
            while b"open" not in received:
                received += peer.recv(4096)
            assert received[2] == 1  # Session Present
    with pytest.raises(StoreError, match="is a folder"), broker_thread(store=tmp_path):
        pytest.fail("entered")


def test_drop_clients_cuts_without_a_goodbye() -> None:
    with broker_thread() as broker, connected(broker.host, broker.port) as peer:
        broker.drop_clients()
        assert peer.recv(4096) == b""


def test_a_port_in_use_is_raised_here() -> None:
    with broker_thread() as broker, pytest.raises(ListenError, match="another program is listening"), broker_thread(listeners=[broker.url]):
        pytest.fail("entered")


def test_the_blocks_own_exception_comes_out() -> None:
    with pytest.raises(KeyError), broker_thread():
        raise KeyError("mine")
