"""paho-mqtt behind the line protocol of `tests/e2e/tools.py`: options as JSON in argv, one JSON order a line in, one event a line out."""

from __future__ import annotations

import json
import sys
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.e2e.drivers.properties import from_paho, say, session_expiry, to_paho

VERSIONS = {"3.1": MQTTProtocolVersion.MQTTv31, "3.1.1": MQTTProtocolVersion.MQTTv311, "5.0": MQTTProtocolVersion.MQTTv5}


def on_connect(client: mqtt.Client, userdata: Any, flags: mqtt.ConnectFlags, reason: Any, properties: Any) -> None:
    say("connected", session_present=flags.session_present, reason=reason.value)


def on_subscribe(client: mqtt.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
    say("subscribed", granted=[reason.value for reason in reasons])


def on_publish(client: mqtt.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
    say("published", reason=reason.value)


def on_message(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
    properties = from_paho(message.properties)
    say("message", topic=message.topic, payload=message.payload.decode(), qos=message.qos, retain=message.retain, properties=properties)


def on_disconnect(client: mqtt.Client, userdata: Any, flags: mqtt.DisconnectFlags, reason: Any, properties: Any) -> None:
    say("disconnected", reason=reason.value)


def main() -> None:
    options = json.loads(sys.argv[1])
    five = options["version"] == "5.0"
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=options["client_id"],
        protocol=VERSIONS[options["version"]],
        clean_session=None if five else options["clean"],
        transport=options["transport"],
        reconnect_on_failure=False,
    )
    client.on_connect, client.on_subscribe, client.on_publish = on_connect, on_subscribe, on_publish
    client.on_message, client.on_disconnect = on_message, on_disconnect
    if options["cafile"]:
        client.tls_set(options["cafile"])
    if options["will"]:
        will = options["will"]
        client.will_set(will["topic"], will["payload"], will["qos"], will["retain"], Properties(PacketTypes.WILLMESSAGE) if five else None)
    if five:
        client.connect(options["host"], options["port"], clean_start=options["clean"], properties=session_expiry(options["expiry_s"]))
    else:
        client.connect(options["host"], options["port"])
    client.loop_start()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "subscribe":
            client.subscribe(order["filter"], order["qos"])
        elif order["do"] == "publish":
            client.publish(order["topic"], order["payload"], order["qos"], order["retain"], to_paho(order["properties"]))
        else:
            client.disconnect()
            break
    client.loop_stop()


main()
