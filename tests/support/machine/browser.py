"""A real browser, Chromium, with a page or a few: what they show, and pictures of them.

It is one process tree for many pages, by Chromium's own protocol on two pipes (--remote-debugging-pipe): a start takes
a second, and a page some tens of milliseconds.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..requirements import require_tool

LIMIT_S = 60.0

PHONE, DESKTOP = 390, 1180
"""Widths in pixels: a usual phone's, and a window that shows the card's whole column."""


class Browser:
    """A running Chromium; made by :func:`browser`."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._number = 0
        self._rest = b""

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """One command of Chromium's protocol, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply)
                return dict(reply["result"])
        raise TimeoutError(method)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._events, 1 << 20)
            if not piece:
                raise EOFError("Chromium has ended.")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    @contextlib.contextmanager
    def page(self, url: str, width: int = DESKTOP, dark: bool = False) -> Iterator[Page]:
        """A page in a window of ``width`` pixels; an exception of its scripts fails the test at its end."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, width)
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            session,
            width=width,
            height=844 if phone else 900,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", session, features=features)
        # In the page before its own scripts.
        watch = "window.errors = []; addEventListener('error', (event) => errors.push(String(event.message)))"
        self.call("Page.enable", session)
        self.call("Page.addScriptToEvaluateOnNewDocument", session, source=watch)
        self.call("Page.navigate", session, url=url)
        page.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
        yield page
        assert page.value("errors") == []
        self.call("Target.closeTarget", targetId=target)


class Page:
    """One page."""

    def __init__(self, browser: Browser, session: str, width: int) -> None:
        self._browser, self._session, self._width = browser, session, width

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self._browser.call(
            "Runtime.evaluate", self._session, expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + LIMIT_S
        while not self.value(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)

    @property
    def text(self) -> str:
        """What a reader sees."""
        return str(self.value("document.body.innerText"))

    def picture(self, file: Path, most: float = 0.0) -> None:
        """Save the page as PNG: all of it, or at most ``most`` pixels from its top."""
        height = self.value("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self._width, "height": min(height, most or height), "scale": 1}
        found = self._browser.call(
            "Page.captureScreenshot", self._session, clip=clip, captureBeyondViewport=True, format="png"
        )
        file.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, until the end of the block."""
    program = require_tool("chromium", "chromium")
    read_commands, commands = os.pipe()
    events, write_events = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless",
            "--no-sandbox",  # root's Chromium does not start otherwise
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        # Chromium reads commands from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{read_commands} 4>&{write_events}'
        process = subprocess.Popen(
            ["bash", "-c", script, "chromium", program, *options],
            pass_fds=(read_commands, write_events),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Its crash reporter and its settings stay in the profile's folder.
            env={**os.environ, "HOME": profile, "XDG_CONFIG_HOME": profile, "XDG_CACHE_HOME": profile},
        )
        os.close(read_commands)
        os.close(write_events)
        try:
            found = Browser(commands, events)
            yield found
            with contextlib.suppress(EOFError):
                found.call("Browser.close")
            process.wait(LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(commands)
            os.close(events)
