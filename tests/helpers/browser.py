"""A real Chromium at any width, spoken to through its debugging pipe."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

SECONDS = 240
"""A busy machine may take long to come to the end of the scripts."""


def chromium() -> str:
    """The browser. Skips the test where there is none: `apt-get install chromium` brings it."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("there is no Chromium to open the report in; install the package chromium")


START = """import os, sys
high = [os.dup(int(end)) for end in sys.argv[1:3] for _ in range(3)]  # the last of each lies above 3 and 4
os.dup2(high[2], 3)
os.dup2(high[5], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts the browser, which reads commands from the descriptor 3 and answers on 4."""


class Page:
    """A page of a browser, which has been told to load a file."""

    def __init__(self, to: int, from_: int) -> None:
        self.to, self.from_, self.number, self.session = to, from_, 0, ""
        self.left, self.said = b"", list[str]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """The answer to a command of the protocol; what the page logs meanwhile is kept in `said`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.said.append(json.dumps(answer["params"])[:500])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            part = os.read(self.from_, 2**20)
            assert part, "the browser has gone"
            self.left += part
        message, self.left = self.left.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def load(self, file: Path, width: int, until: str) -> None:
        """Loads a file at a width in pixels, and waits until an expression is true."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=file.resolve().as_uri())
        end = time.monotonic() + SECONDS
        while not self.value(until):
            assert time.monotonic() < end, f"{until} is not true after {SECONDS} s"
            time.sleep(0.2)

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def picture(self, file: Path) -> None:
        """Writes the whole page as a PNG."""
        shown = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shown["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page of a new browser, which ends with the block."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
    command = [chromium(), *flags, f"--user-data-dir={profile}"]
    there, to = os.pipe()
    from_, back = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(there), str(back), *command],
        pass_fds=(there, back),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (there, back):
        os.close(end)
    try:
        yield Page(to, from_)
    finally:
        with suppress(OSError, AssertionError):
            os.write(to, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for end in (to, from_):
            os.close(end)
