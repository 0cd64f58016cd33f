"""The pytest plugin: `mqtt_broker`, a broker on a real port in a thread of its own, and `mqtt_network`, a faulty network in virtual time.

Every pytest run of an environment that has the broker installed loads this file; so it imports pytest and nothing else until a test
asks for a fixture. The fixtures are one for each test: a broker starts in milliseconds, and no test sees another one's messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from broker.testing.network import Network
    from broker.thread import BrokerThread


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mqtt_broker(**limits): what the `mqtt_broker` fixture's broker is opened with, keys of the TOML's [limits]")


@pytest.fixture
def mqtt_broker(request: pytest.FixtureRequest) -> Iterator[BrokerThread]:
    """A broker on a free port of 127.0.0.1: .url .host .port .publish() .wait_for() .clear() .drop_clients() .stop() .start()."""
    from broker.thread import broker_thread

    limits: dict[str, Any] = {}
    for marker in request.node.iter_markers("mqtt_broker"):
        if marker.args:
            raise pytest.UsageError("@pytest.mark.mqtt_broker takes limits by name: mqtt_broker(queue_count_max=10)")
        limits = {**marker.kwargs, **limits}  # the nearest one decides
    with broker_thread(**limits) as thread:
        yield thread


@pytest.fixture
def mqtt_network() -> Network:
    """`connect(mqtt_network.to(hub))` in Trio tests, under `autojump_clock`: .delay_s .split_bytes .bytes_per_s .cut() .silence()."""
    from broker.testing.network import Network

    return Network()
