"""MQTT from a page in a real browser: Chromium without a window, mqtt.js as it is built for browsers, and pages of other sites.

The page tells what it saw by a POST to the server that it came from, so nothing is waited for but that, and no longer than SECONDS_MAX.
The browser's resolver is told that every name under .example is this machine and that there is nothing else: that makes pages of
other origins without another machine, and lets the browser talk to nobody.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.conftest import SECONDS_MAX, find_program
from tests.e2e.tools import Program, serving

HERE = Path(__file__).parent
PAGE = HERE / "browser" / "page.html"
BUNDLE = HERE / "node_modules" / "mqtt" / "dist" / "mqtt.min.js"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
"""--no-sandbox: as root, in a container, it has none. The page is ours."""

Visit = Callable[..., dict[str, Any]]


class PageServer(ThreadingHTTPServer):
    """The page, the bundle, and what pages tell."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()


class Answers(BaseHTTPRequestHandler):
    server: PageServer
    timeout = SECONDS_MAX

    def do_GET(self) -> None:
        found = {"/": (PAGE, "text/html"), "/mqtt.min.js": (BUNDLE, "text/javascript")}.get(self.path.partition("?")[0])
        if found is None:
            self.answer(404, "text/plain", b"")
        else:
            self.answer(200, found[1], found[0].read_bytes())

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, "text/plain", b"")
        self.server.told.put(told)

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def pages() -> Iterator[PageServer]:
    if not BUNDLE.is_file():
        pytest.skip("mqtt.js is not installed (cd tests/e2e && npm install)")
    with PageServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def broker_event(line: str) -> dict[str, Any]:
    found = re.search(r"listening on (ws://127\.0\.0\.1:\d+/\w+)$", line)
    return {"event": "listening", "url": found[1]} if found else {"event": "refused" if "may not use this listener" in line else "log", "line": line}


@pytest.fixture(scope="module")
def broker(pages: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Without a word on authentication; one listener without one on origins, and one for pages of dashboard.example."""
    file = tmp_path_factory.mktemp("browser") / "broker.toml"
    listener = '[[listeners]]\nport = 0\nprotocol = "websocket"\n'
    allowed = f'origins = ["http://dashboard.example:{pages.server_address[1]}"]\n'
    file.write_text(f'{listener}path = "/plain"\n{listener}path = "/allowed"\n{allowed}')
    with serving(["-c", str(file)], broker_event) as program:
        yield program


@pytest.fixture(scope="module")
def urls(broker: Program) -> dict[str, str]:
    """{"plain": the URL of that listener, "allowed": ...}."""
    found = [broker.wait("listening")["url"] for _ in range(2)]
    return {url.rpartition("/")[2]: url for url in found}


@pytest.fixture
def visit(pages: PageServer, urls: dict[str, str], topic: str, tmp_path: Path) -> Iterator[Visit]:
    """visit(host, listener, version) shows the page of that host to a browser that knows nothing yet; what the page told."""
    program = find_program("chromium", "chromium")

    def one(host: str, listener: str, version: int = 5) -> dict[str, Any]:
        asked = urlencode({"url": urls[listener], "version": version, "topic": topic})
        page = f"http://{host}:{pages.server_address[1]}/?{asked}"
        log = tmp_path / "chromium.log"
        with log.open("wb") as output:
            browser = subprocess.Popen(
                [program, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", page],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env={**os.environ, "HOME": str(tmp_path)},
            )  # fmt: skip
        stack.callback(end, browser)
        try:
            return pages.told.get(timeout=SECONDS_MAX)
        except queue.Empty:
            pytest.fail(f"the page told nothing (exit {browser.poll()}):\n{log.read_text(errors='replace')}")

    with ExitStack() as stack:
        yield one


def end(browser: subprocess.Popen[bytes]) -> None:
    """With all that it started, which is its process group."""
    if browser.poll() is None:
        os.killpg(browser.pid, signal.SIGKILL)
    browser.wait(SECONDS_MAX)


def all_went_well(told: dict[str, Any], topic: str) -> None:
    message = {"topic": topic, "payload": "grüße 世界", "qos": 1}
    assert {key: told[key] for key in told if key != "origin"} == {
        "connected": True, "granted": 1, "acknowledged": True, "message": message, "error": None
    }  # fmt: skip


@pytest.mark.parametrize("version", [5, 4])
def test_a_page_publishes_and_receives(version: int, visit: Visit, topic: str) -> None:
    all_went_well(visit("127.0.0.1", "plain", version), topic)


def test_a_page_of_an_origin_that_is_named(visit: Visit, topic: str) -> None:
    told = visit("dashboard.example", "allowed")
    all_went_well(told, topic)
    assert told["origin"].startswith("http://dashboard.example:")


@pytest.mark.parametrize("listener", ["plain", "allowed"])
def test_a_page_of_another_site_does_not_come_in(listener: str, visit: Visit, broker: Program) -> None:
    told = visit("evil.example", listener)
    assert (told["connected"], told["granted"], told["message"]) == (False, None, None)
    # That it was the broker who said no, and not the browser:
    assert f"pages of '{told['origin']}' may not use this listener" in broker.wait("refused")["line"]
