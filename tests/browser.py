"""A browser for tests: chromium without a window, spoken to through a pipe.

The DevTools protocol over ``--remote-debugging-pipe`` is JSON between NUL bytes on file descriptors
3 and 4, so nothing but chromium is needed, and no port is opened.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["DoesNotStartError", "Page", "executable", "opened"]

_SECONDS = 30.0


def executable() -> str | None:
    """Where a chromium is, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class DoesNotStartError(Exception):
    """What is called chromium is none, or can't run here."""


class Page:
    """One tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._number = 0
        self.requests: list[str] = []
        self.messages: list[str] = []  # errors that the page or the browser logged
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        number = self._number
        return self._until(lambda answer: answer.get("id") == number).get("result", {})

    def _until(self, wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Log.entryAdded":
                self.messages.append(answer["params"]["entry"]["text"])
            if "error" in answer:
                raise RuntimeError(f"chromium: {answer['error']}")
            if wanted(answer):
                return answer

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("chromium ended")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, url: str, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Load a page in a window of ``width`` CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.call("Page.navigate", url=url)
        self._until(lambda answer: answer.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"chromium: {found['exceptionDetails']}")
        return found["result"].get("value")

    def screenshot(self, path: Path, height: int | None = None) -> None:
        """The whole page, or its top, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"]}
        picture = self.call(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**clip, "scale": 1}
        )
        path.write_bytes(base64.b64decode(picture["data"]))

    def pdf(self, path: Path) -> None:
        """What a printer would get, from a screen that is dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        self.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
        self.call("Emulation.clearDeviceMetricsOverride")
        printed = self.call(
            "Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.7
        )
        path.write_bytes(base64.b64decode(printed["data"]))


@contextlib.contextmanager
def opened() -> Iterator[Page]:
    """Start a browser of its own, with an empty profile, and end it."""
    path = executable()
    assert path is not None
    mine = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --mute-audio "
            "--disable-background-networking --disable-component-update --disable-sync "
            "--disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
        )
        # The shell puts our ends where chromium looks for them: 3 to read, 4 to write.
        script = f'exec "$0" "$@" 3<&{mine[0][0]} 4>&{mine[1][1]}'
        process = subprocess.Popen(
            ["bash", "-c", script, path, *options.split(), f"--user-data-dir={profile}"],
            pass_fds=(mine[0][0], mine[1][1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(mine[0][0])
        os.close(mine[1][1])
        try:
            try:
                page = Page(mine[0][1], mine[1][0])
            except (RuntimeError, OSError) as error:
                raise DoesNotStartError(f"{path}: {error}") from error
            yield page
        finally:
            os.close(mine[0][1])
            os.close(mine[1][0])
            try:
                process.wait(5)  # it ends when its pipe does
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
