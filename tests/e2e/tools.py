"""One face for every outside client, so that each scenario is written once and run with all of them.

A driven client is a subprocess that takes one JSON order a line and answers with one JSON event a line (`drivers/`, `mqttjs/`);
a command client is a pair of programs like mosquitto_pub and mosquitto_sub. Each wait has a deadline and nothing sleeps:
output is read by a thread and waited for as events. `kill` ends a client as a power cut does, without DISCONNECT.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
BROKER = [sys.executable, "-W", "error", "-m", "broker"]
"""A warning, also of what was not closed, is then a fault, or lines on stderr."""
SECONDS_MAX = max(20.0, float(os.environ.get("BROKER_TEST_SECONDS_MAX", "0")))
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # which is as sudden on Windows


@dataclass(frozen=True)
class Received:
    topic: str
    payload: str
    qos: int
    retain: bool
    properties: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Will:
    topic: str
    payload: str
    qos: int = 0
    retain: bool = False


@dataclass(frozen=True)
class Options:
    """How a client connects. expiry_s: Session Expiry Interval in seconds, MQTT 5.0 only. transport: tcp or websockets, those at /mqtt.
    cafile: by TLS, trusting those certificates."""

    host: str
    port: int
    version: str = "5.0"
    client_id: str = ""
    clean: bool = True
    expiry_s: int = 0
    will: Will | None = None
    transport: str = "tcp"
    cafile: str = ""


class Program:
    """A subprocess whose lines of output are events in a queue, stderr included."""

    def __init__(self, argv: Sequence[str], parse: Callable[[str], dict[str, Any]]) -> None:
        self.argv = argv
        self.log: list[str] = []
        self.aside: list[dict[str, Any]] = []  # came while something else was waited for
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", bufsize=1
        )
        self.reader = threading.Thread(target=self.read, args=(parse,), daemon=True)
        self.reader.start()

    def read(self, parse: Callable[[str], dict[str, Any]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            self.events.put(parse(line.rstrip("\n")))
        self.events.put(None)

    def wait(self, name: str) -> dict[str, Any]:
        for index, event in enumerate(self.aside):
            if event["event"] == name:
                return self.aside.pop(index)
        while True:
            try:
                next_event = self.events.get(timeout=SECONDS_MAX)
            except queue.Empty:
                next_event = None
            assert next_event is not None, f"{self.argv[:4]} never said {name!r} (exit {self.process.poll()}):\n" + "".join(self.log)
            if next_event["event"] == name:
                return next_event
            self.aside.append(next_event)

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def stop(self, how: signal.Signals | None) -> None:
        """Send `how` (None: it ends by itself) and wait for the end."""
        if how is not None and self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(SECONDS_MAX)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join(SECONDS_MAX)
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()


@contextmanager
def serving(argv: Sequence[str], parse: Callable[[str], dict[str, Any]]) -> Iterator[Program]:
    """`broker serve` with those arguments, until the block ends; it has to end in good order."""
    program = Program([*BROKER, "serve", *argv], parse)
    try:
        yield program
    finally:
        program.stop(signal.SIGTERM)
    assert program.process.returncode == 0, "".join(program.log)
    assert "Traceback" not in "".join(program.log), "".join(program.log)


class Client:
    """One client, of whatever make."""

    session_present: bool | None = None  # None: this client does not tell
    says_goodbye = True  # `close` leaves with DISCONNECT 0x00

    def subscribe(self, filter: str, qos: int) -> None:
        """Back when SUBACK has come."""
        raise NotImplementedError

    def publish(self, topic: str, payload: str, qos: int = 0, *, retain: bool = False, properties: dict[str, Any] | None = None) -> None:
        """Back when the handshake of that QoS is complete."""
        raise NotImplementedError

    def wait(self, count: int) -> list[Received]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError


def received(event: dict[str, Any]) -> Received:
    return Received(event["topic"], event["payload"], event["qos"], bool(event["retain"]), event["properties"])


class DrivenClient(Client):
    def __init__(self, argv: Sequence[str], options: Options) -> None:
        values = {**vars(options), "will": vars(options.will) if options.will else None}
        self.program = Program([*argv, json.dumps(values)], json_or_log)
        self.session_present = self.program.wait("connected")["session_present"]

    def subscribe(self, filter: str, qos: int) -> None:
        self.program.order(do="subscribe", filter=filter, qos=qos)
        assert self.program.wait("subscribed")["granted"] == [qos]

    def publish(self, topic: str, payload: str, qos: int = 0, *, retain: bool = False, properties: dict[str, Any] | None = None) -> None:
        self.program.order(do="publish", topic=topic, payload=payload, qos=qos, retain=retain, properties=properties or {})
        self.program.wait("published")

    def wait(self, count: int) -> list[Received]:
        return [received(self.program.wait("message")) for _ in range(count)]

    def close(self) -> None:
        if self.program.process.poll() is None:
            self.program.order(do="close")
        self.program.stop(None)

    def kill(self) -> None:
        self.program.stop(KILL)


def json_or_log(line: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(line) if line.startswith('{"event"') else {"event": "log"}
    return event


class CommandClient(Client):
    """mosquitto_pub and mosquitto_sub, or those who take their flags."""

    def __init__(self, publisher: Sequence[str], subscriber: Sequence[str], options: Options) -> None:
        self.publisher, self.subscriber, self.options = publisher, subscriber, options
        # On SIGINT mosquitto_sub leaves with 0x04, will included, and does so inside its signal handler, where it may hang.
        self.says_goodbye = "mosquitto_sub" not in subscriber[-1]
        self.program: Program | None = None

    def flags(self) -> list[str]:
        options = self.options
        by = ["--ws"] if options.transport == "websockets" else []
        by += ["--cafile", options.cafile] if options.cafile else []
        return ["-h", options.host, "-p", str(options.port), "-V", {"5.0": "5", "3.1.1": "311", "3.1": "31"}[options.version], *by]

    def subscribe(self, filter: str, qos: int) -> None:
        options = self.options
        flags = [*self.flags(), "-d", "-F", "%j", "-t", filter, "-q", str(qos)]
        if options.client_id:
            flags += ["-i", options.client_id]
        if not options.clean:
            flags += ["-c"]
        if options.expiry_s:
            flags += ["-x", str(options.expiry_s)]
        if options.will:
            flags += ["--will-topic", options.will.topic, "--will-payload", options.will.payload, "--will-qos", str(options.will.qos)]
            flags += ["--will-retain"] if options.will.retain else []
        self.program = Program([*self.subscriber, *flags], percent_j)
        self.program.wait("subscribed")

    def publish(self, topic: str, payload: str, qos: int = 0, *, retain: bool = False, properties: dict[str, Any] | None = None) -> None:
        flags = [*self.flags(), "-t", topic, "-q", str(qos), *(["-m", payload] if payload else ["-n"]), *(["-r"] if retain else [])]
        for name, value in (properties or {}).items():
            for words in value if name == "user_properties" else [[str(value)]]:
                flags += ["-D", "publish", COMMAND_NAMES[name], *words]
        done = subprocess.run([*self.publisher, *flags], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done

    def wait(self, count: int) -> list[Received]:
        assert self.program is not None
        return [received(self.program.wait("message")) for _ in range(count)]

    def close(self) -> None:
        if self.program is not None:
            self.program.stop(signal.SIGINT if self.says_goodbye else KILL)

    def kill(self) -> None:
        if self.program is not None:
            self.program.stop(KILL)


COMMAND_NAMES = {
    "content_type": "content-type",
    "response_topic": "response-topic",
    "correlation_data": "correlation-data",
    "message_expiry_s": "message-expiry-interval",
    "user_properties": "user-property",
}


def percent_j(line: str) -> dict[str, Any]:
    """One line of `mosquitto_sub -d -F %j`: a message, or a line about a packet."""
    if not line.startswith("{"):
        return {"event": "subscribed" if "SUBACK" in line else "log"}
    event = json.loads(line, object_pairs_hook=pairs)
    values = event.get("properties", {})
    properties = {name: values[long] for name, long in COMMAND_NAMES.items() if long in values}
    if "user-properties" in values:
        several = values["user-properties"]
        several = several if isinstance(several, list) else [several]  # 2.1 writes a list of objects of one
        properties["user_properties"] = [pair for one in several for pair in one[PAIRS]]
    return {"event": "message", **{key: event[key] for key in ("topic", "qos", "retain")}, "payload": event["payload"], "properties": properties}


PAIRS = "\0pairs"  # no JSON key of ours: %j writes repeated user properties as one object with repeated keys


def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {**dict(items), PAIRS: [list(item) for item in items]}
