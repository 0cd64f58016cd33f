"""aiomqtt behind the line protocol of `tests/e2e/tools.py`: options as JSON in argv, one JSON order a line in, one event a line out."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiomqtt

from tests.e2e.drivers.properties import from_paho, say, session_expiry, to_paho

VERSIONS = {"3.1": aiomqtt.ProtocolVersion.V31, "3.1.1": aiomqtt.ProtocolVersion.V311, "5.0": aiomqtt.ProtocolVersion.V5}


def reason_value(reason: Any) -> int:
    return int(getattr(reason, "value", reason))


async def print_messages(client: aiomqtt.Client) -> None:
    async for message in client.messages:
        payload = message.payload.decode()
        properties = from_paho(message.properties)
        say("message", topic=message.topic.value, payload=payload, qos=message.qos, retain=message.retain, properties=properties)


async def obey(client: aiomqtt.Client) -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if order["do"] == "subscribe":
            say("subscribed", granted=[reason_value(reason) for reason in await client.subscribe(order["filter"], order["qos"])])
        elif order["do"] == "publish":
            await client.publish(order["topic"], order["payload"], order["qos"], order["retain"], to_paho(order["properties"]))
            say("published", reason=0)
        else:
            return


async def main() -> None:
    options = json.loads(sys.argv[1])
    five = options["version"] == "5.0"
    will = aiomqtt.Will(**options["will"]) if options["will"] else None
    version: dict[str, Any] = {"clean_session": options["clean"]}
    if five:
        version = {"clean_start": options["clean"], "properties": session_expiry(options["expiry_s"])}
    tls = aiomqtt.TLSParameters(ca_certs=options["cafile"]) if options["cafile"] else None
    client = aiomqtt.Client(
        options["host"], options["port"], identifier=options["client_id"], protocol=VERSIONS[options["version"]], will=will, tls_params=tls, **version
    )
    async with client:
        say("connected", session_present=None, reason=0)
        printer = asyncio.create_task(print_messages(client))
        await obey(client)
        printer.cancel()
    say("disconnected", reason=0)


asyncio.run(main())
