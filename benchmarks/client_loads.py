"""What `benchmarks.client` has each library do, in a process of its own: `python -m benchmarks.client_loads LIBRARY LOAD URL COUNT VERSION`.

A class for each library, with the same verbs, each written as that library's own documentation does it. Where a library has no such verb, it
raises NotImplementedError. The process prints `ready` when the first message may come, and in the end its CPU seconds and seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

TOPIC: Final = "bench/client"
ANSWERED: Final = "bench/question"
PAYLOAD: Final = bytes(64)
TASKS: Final = 100
"""That publish at the same time; and so many may be under way where a library has no tasks."""
WARM_SHARE: Final = 10
"""One in so many messages goes before the count."""


class Stopwatch:
    """From `start` to `stop`; CPU is that of all threads of this process."""

    def __init__(self) -> None:
        self.cpu_s = self.elapsed_s = 0.0

    def start(self) -> None:
        self._cpu, self._began = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        self.cpu_s, self.elapsed_s = time.process_time() - self._cpu, time.perf_counter() - self._began


class Counting:
    """Counts what comes; starts the watch after the warm part, and stops it at the end."""

    def __init__(self, watch: Stopwatch, count: int) -> None:
        self.watch = watch
        self.left = count + count // WARM_SHARE
        self._warm = self.left - count // WARM_SHARE

    def one(self) -> bool:
        """Was it the last?"""
        self.left -= 1
        if self.left == self._warm:
            self.watch.start()
        elif not self.left:
            self.watch.stop()
        return not self.left


def ready() -> None:
    print("ready", flush=True)


async def twice(once: Callable[[int], Awaitable[object]], watch: Stopwatch, count: int) -> None:
    await once(count // WARM_SHARE)
    watch.start()
    await once(count)
    watch.stop()


class Awaited:
    """A library whose `publish` is awaited until the message is done."""

    def run(self, load: Callable[[Any], Awaitable[None]]) -> None:
        raise NotImplementedError

    def publish(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            async def once(many: int) -> None:
                for _ in range(many):
                    await client.publish(TOPIC, PAYLOAD, qos=qos)

            await twice(once, watch, count)

        self.run(load)


class Ours(Awaited):
    """broker.client, in Trio."""

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version: Any = {"5": "5.0", "311": "3.1.1"}[version]

    def run(self, load: Callable[[Any], Awaitable[None]]) -> None:
        import trio

        from broker import connect

        async def main() -> None:
            async with connect(self.url, version=self.version) as client:
                await load(client)

        trio.run(main)

    def tasks(self, watch: Stopwatch, qos: int, count: int) -> None:
        import trio

        async def load(client: Any) -> None:
            async def task(many: int) -> None:
                for _ in range(many):
                    await client.publish(TOPIC, PAYLOAD, qos=qos)

            async def once(many: int) -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(TASKS):
                        nursery.start_soon(task, many // TASKS)

            await twice(once, watch, count)

        self.run(load)

    def stream(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            async def once(many: int) -> None:
                async with client.pipeline(count_max=TASKS) as pipeline:
                    for _ in range(many):
                        await pipeline.publish(TOPIC, PAYLOAD, qos=qos)

            await twice(once, watch, count)

        self.run(load)

    def receive(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            counting = Counting(watch, count)
            async with client.subscribe(TOPIC, qos=qos) as messages:
                ready()
                async for _ in messages:
                    if counting.one():
                        break

        self.run(load)

    def request(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            async def once(many: int) -> None:
                for _ in range(many):
                    await client.request(ANSWERED, PAYLOAD, qos=qos)

            await twice(once, watch, count)

        self.run(load)

    def answer(self) -> None:
        """The other side of `request`, for all libraries."""

        async def load(client: Any) -> None:
            async with client.subscribe(ANSWERED, qos=1) as questions:
                ready()
                async for question in questions:
                    await client.reply(question, PAYLOAD, qos=0)

        self.run(load)


class Paho:
    """paho-mqtt with its network thread, but for `receive`, which it needs none for."""

    def __init__(self, url: str, version: str) -> None:
        paho = import_module("paho.mqtt.client")
        parts = urlsplit(url)
        self.is_new = version == "5"
        protocol = paho.MQTTProtocolVersion.MQTTv5 if self.is_new else paho.MQTTProtocolVersion.MQTTv311
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=protocol)
        self.client.max_inflight_messages_set(TASKS)
        self.host, self.port = parts.hostname, parts.port

    def start(self) -> None:
        connected = threading.Event()
        self.client.on_connect = lambda *_: connected.set()
        self.client.connect(self.host, self.port)
        self.client.loop_start()
        connected.wait()

    def publish(self, watch: Stopwatch, qos: int, count: int) -> None:
        self.start()
        for number in range(count + count // WARM_SHARE):
            if number == count // WARM_SHARE:
                watch.start()
            self.client.publish(TOPIC, PAYLOAD, qos).wait_for_publish()
        watch.stop()

    def tasks(self, watch: Stopwatch, qos: int, count: int) -> None:
        self.start()
        room = threading.Semaphore(TASKS)
        self.client.on_publish = lambda *_: room.release()
        for number in range(count + count // WARM_SHARE):
            if number == count // WARM_SHARE:
                watch.start()
            room.acquire()
            self.client.publish(TOPIC, PAYLOAD, qos)
        for _ in range(TASKS):
            room.acquire()
        watch.stop()

    stream = tasks

    def receive(self, watch: Stopwatch, qos: int, count: int) -> None:
        counting = Counting(watch, count)

        def on_message(client: Any, userdata: object, message: object) -> None:
            if counting.one():
                client.disconnect()

        self.client.on_message = on_message
        self.client.on_connect = lambda *_: self.client.subscribe(TOPIC, qos)
        self.client.on_subscribe = lambda *_: ready()
        self.client.connect(self.host, self.port)
        self.client.loop_forever()

    def request(self, watch: Stopwatch, qos: int, count: int) -> None:
        self.start()
        properties = import_module("paho.mqtt.properties").Properties(import_module("paho.mqtt.packettypes").PacketTypes.PUBLISH)
        properties.ResponseTopic = "bench/answer"
        answers: dict[bytes, threading.Event] = {}
        self.client.on_message = lambda client, userdata, message: answers.pop(message.properties.CorrelationData).set()
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.subscribe("bench/answer", 0)
        subscribed.wait()
        for number in range(count + count // WARM_SHARE):
            if number == count // WARM_SHARE:
                watch.start()
            properties.CorrelationData = key = number.to_bytes(4, "big")
            answers[key] = answered = threading.Event()
            self.client.publish(ANSWERED, PAYLOAD, qos, properties=properties)
            answered.wait()
        watch.stop()


class Aiomqtt(Awaited):
    """aiomqtt, which is paho-mqtt in asyncio."""

    def __init__(self, url: str, version: str) -> None:
        self.library = import_module("aiomqtt")
        self.parts = urlsplit(url)
        self.version = self.library.ProtocolVersion.V5 if version == "5" else self.library.ProtocolVersion.V311

    def run(self, load: Callable[[Any], Awaitable[None]]) -> None:
        async def main() -> None:
            inflight = {"max_inflight_messages": TASKS, "max_concurrent_outgoing_calls": TASKS}
            async with self.library.Client(self.parts.hostname, self.parts.port, protocol=self.version, **inflight) as client:
                client.pending_calls_threshold = TASKS + 1  # it would log a line for each call beyond ten
                await load(client)

        asyncio.run(main())

    def tasks(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            async def task(many: int) -> None:
                for _ in range(many):
                    await client.publish(TOPIC, PAYLOAD, qos)

            async def once(many: int) -> None:
                async with asyncio.TaskGroup() as group:
                    for _ in range(TASKS):
                        group.create_task(task(many // TASKS))

            await twice(once, watch, count)

        self.run(load)

    stream = tasks

    def receive(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            counting = Counting(watch, count)
            await client.subscribe(TOPIC, qos)
            ready()
            async for _ in client.messages:
                if counting.one():
                    break

        self.run(load)

    def request(self, watch: Stopwatch, qos: int, count: int) -> None:
        properties = import_module("paho.mqtt.properties").Properties(import_module("paho.mqtt.packettypes").PacketTypes.PUBLISH)
        properties.ResponseTopic = "bench/answer"

        async def load(client: Any) -> None:
            await client.subscribe("bench/answer", 0)
            answers = aiter(client.messages)

            async def once(many: int) -> None:
                for number in range(many):
                    properties.CorrelationData = key = number.to_bytes(4, "big")
                    await client.publish(ANSWERED, PAYLOAD, qos, properties=properties)
                    while (await anext(answers)).properties.CorrelationData != key:
                        pass

            await twice(once, watch, count)

        self.run(load)


class Gmqtt:
    """gmqtt, in asyncio. Its `publish` waits for nothing; what it has not seen acknowledged lies in its storage."""

    def __init__(self, url: str, version: str) -> None:
        self.library = import_module("gmqtt")
        self.storage = import_module("gmqtt.storage").PersistentStorage()
        self.parts = urlsplit(url)
        self.version = 5 if version == "5" else 4

    def run(self, load: Callable[[Any], Awaitable[None]]) -> None:
        async def main() -> None:
            client = self.library.Client("bench-gmqtt", persistent_storage=self.storage)
            await client.connect(self.parts.hostname, self.parts.port, version=self.version)
            await load(client)
            await client.disconnect()

        asyncio.run(main())

    def publish(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            async def once(many: int) -> None:
                for _ in range(many):
                    client.publish(TOPIC, PAYLOAD, qos)
                    if qos:
                        await self.storage.wait_empty()
                    else:
                        await asyncio.sleep(0)

            await twice(once, watch, count)

        self.run(load)

    def tasks(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            async def once(many: int) -> None:
                for _ in range(many // TASKS):
                    for _ in range(TASKS):
                        client.publish(TOPIC, PAYLOAD, qos)
                    if qos:
                        await self.storage.wait_empty()
                    else:
                        await asyncio.sleep(0)

            await twice(once, watch, count)

        self.run(load)

    stream = tasks

    def receive(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            counting = Counting(watch, count)
            done = asyncio.Event()
            subscribed = asyncio.Event()

            def on_message(*_: object) -> int:
                if counting.one():
                    done.set()
                return 0

            client.on_message = on_message
            client.on_subscribe = lambda *_: subscribed.set()
            client.subscribe(TOPIC, qos)
            await subscribed.wait()
            ready()
            await done.wait()

        self.run(load)

    def request(self, watch: Stopwatch, qos: int, count: int) -> None:
        async def load(client: Any) -> None:
            answers: dict[bytes, asyncio.Event] = {}
            subscribed = asyncio.Event()
            client.on_message = lambda client, topic, payload, qos, properties: answers.pop(properties["correlation_data"][0]).set()
            client.on_subscribe = lambda *_: subscribed.set()
            client.subscribe("bench/answer", 0)
            await subscribed.wait()

            async def once(many: int) -> None:
                for number in range(many):
                    key = number.to_bytes(4, "big")
                    answers[key] = answered = asyncio.Event()
                    client.publish(ANSWERED, PAYLOAD, qos, response_topic="bench/answer", correlation_data=key)
                    await answered.wait()

            await twice(once, watch, count)

        self.run(load)


LIBRARIES: Final[dict[str, tuple[type[Any], str]]] = {
    "ours": (Ours, "broker"),
    "paho": (Paho, "paho.mqtt"),
    "aiomqtt": (Aiomqtt, "aiomqtt"),
    "gmqtt": (Gmqtt, "gmqtt"),
}
"""(its verbs, what it imports)."""


def main() -> None:
    library, verb, qos, url, count, version = sys.argv[1:]
    made = LIBRARIES[library][0](url, version)
    if verb == "answer":
        made.answer()
        return
    watch = Stopwatch()
    getattr(made, verb)(watch, int(qos), int(count))
    print(json.dumps({"cpu_s": watch.cpu_s, "elapsed_s": watch.elapsed_s}), flush=True)


if __name__ == "__main__":
    main()
