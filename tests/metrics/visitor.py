"""A visitor of the page, who speaks HTTP over any stream: with h11, or with bytes of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import h11
import trio
from prometheus_client.parser import text_string_to_metric_families

from broker.hub import Broker


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        assert self.text.endswith("}\n")
        return json.loads(self.text)

    @property
    def samples(self) -> dict[str, float]:
        """By name, with label and value behind it: 'x_total{reason="full"}'. A name that comes twice is no page."""
        return samples_of(self.text)


def samples_of(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found
            found[name] = sample.value
    return found


class Visitor:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        length = [("Content-Length", str(len(body)))] if body else []
        request = h11.Request(method=method, target=path, headers=[("Host", "broker"), *length, *(headers or {}).items()])
        await self.stream.send_all(b"".join(self._http.send(event) or b"" for event in (request, h11.Data(body), h11.EndOfMessage())))
        return await self.reply()

    async def reply(self) -> Reply:
        status, headers, body = 0, {}, b""
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(bytes(await self.stream.receive_some(65_536)))
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                assert isinstance(event, h11.EndOfMessage)
                if self._http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    self._http.start_next_cycle()
                return Reply(status, headers, body.decode())

    async def rest(self) -> bytes:
        """All that comes until the other side ends the connection."""
        found = b""
        while data := await self.stream.receive_some(65_536):
            found += bytes(data)
        return found


def page_of(hub: Broker) -> tuple[str, int]:
    (url,) = [url for url in hub.urls if url.startswith("http")]
    host, _, port = url.partition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


async def visit(hub: Broker) -> Visitor:
    return Visitor(await trio.open_tcp_stream(*page_of(hub)))


async def asked(hub: Broker, path: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
    """By a visitor of its own."""
    visitor = await visit(hub)
    async with visitor.stream:
        return await visitor.ask(path, method, headers)
