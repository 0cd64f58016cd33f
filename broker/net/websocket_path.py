"""Where in a URL MQTT over WebSocket is, when nobody has said it: clients differ, so both of their habits meet (docs/decisions/0011-websocket.md).

It is no secret and guards nothing: who may come in is asked by `origins`, and by CONNECT.
"""

from __future__ import annotations

from typing import Final

PATH: Final = "/mqtt"
"""Of a listener that says none, and of a URL that has none."""


def serves(path: str, asked: str) -> bool:
    """Does a listener at `path` take the request for `asked`, whose query counts for nothing?

    PATH also takes "/", which is what browsers make of a URL without a path. A path that was chosen is meant.
    """
    asked = asked.partition("?")[0]
    return asked == path or (asked == "/" and path == PATH)
