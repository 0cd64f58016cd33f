"""Which web pages may speak with a listener: a browser says by the Origin header whose page it is that opens a WebSocket.

Browsers ask nobody before they let a page open one, to any host, this machine's loopback included. So an address that only this
machine can reach is no protection from pages that its user looks at, and neither is a client certificate, which a browser
shows for whatever page it may be. The browser writes the header and no page can change it; what is no browser writes what it likes,
or nothing, and is none of this file's business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

ANY: Final = "*"

# As a browser writes them, so that texts can be compared: lower case, no path, no port that goes without saying.
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORT: Final = re.compile(r"http://.*:80|https://.*:443")
_LOOPBACK: Final = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")


def allows(origins: Sequence[str] | None, origin: str) -> bool:
    """origins: "*" among them is any; None is any page of this machine. origin: the header, "null" where a browser would not say."""
    if origins is None:
        # Not "the host that was asked for": a name that leads to 127.0.0.1 for a moment may be anybody's.
        return _LOOPBACK.fullmatch(origin) is not None
    return ANY in origins or origin in origins


def origin_fault(origin: str) -> str | None:
    """What is wrong with an origin to be allowed, or None."""
    if origin == "null":
        return 'any page can make itself "null"; write "*" for any'
    if origin == ANY or (_ORIGIN.fullmatch(origin) and not _DEFAULT_PORT.fullmatch(origin)):
        return None
    wanted = 'expected "*", or an origin as browsers write it: "https://dashboard.example", in lower case, without path and default port'
    return f"{wanted}, got {origin!r}"
