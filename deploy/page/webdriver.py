"""A headless browser by WebDriver (https://www.w3.org/TR/webdriver2/), as far as the page's check needs it."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Optional

import chromium

# For the driver to answer one command.
PATIENCE = 60
# Root has no sandbox; and nothing may be asked of anybody but the page.
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-dev-shm-usage", "--hide-scrollbars"]


class Failed(Exception):
    """What the driver, or a wait, has to say."""


class Browser:
    """One browser, which ends with the `with` block."""

    def __enter__(self) -> "Browser":
        found = chromium.browser()
        self.folder = tempfile.mkdtemp(prefix="ganglion-browser-")
        self.log = Path(self.folder) / "driver.log"
        with self.log.open("w") as log:
            self.driver = subprocess.Popen([str(found.driver), "--port=0"], stdout=log, stderr=log,
                                           env=found.environment)
        self.session = ""
        try:
            self.url = f"http://127.0.0.1:{self.port()}"
            options = {"binary": str(found.program),
                       "args": [*ARGUMENTS, f"--user-data-dir={self.folder}/profile"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options,
                      "goog:loggingPrefs": {"browser": "ALL"}}
            self.session = self.post("/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.session:
                self.call("DELETE", f"/session/{self.session}")
        except (Failed, OSError):
            pass  # It ends with its driver.
        self.driver.terminate()
        try:
            self.driver.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.driver.kill()
            self.driver.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def port(self) -> int:
        """The port that the driver has chosen."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            said = self.log.read_text()
            found = re.search(r"started successfully on port (\d+)", said)
            if found:
                return int(found.group(1))
            if self.driver.poll() is not None:
                break
            time.sleep(0.05)
        raise Failed(f"the browser's driver does not start:\n{self.log.read_text()}")

    def call(self, method: str, path: str, body: Optional[dict] = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise Failed(f"{value['error']}: {value['message']}") from None

    def post(self, path: str, body: dict) -> Any:
        return self.call("POST", path, body)

    def command(self, name: str, body: dict) -> Any:
        """One of WebDriver's commands."""
        return self.post(f"/session/{self.session}/{name}", body)

    def devtools(self, name: str, parameters: dict) -> Any:
        """One of Chromium's own: what WebDriver has no word for."""
        return self.command("goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str) -> None:
        self.command("url", {"url": url})

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self.command("execute/sync", {"script": f"return ({script});", "args": []})

    def wait(self, what: str, script: str, holds: Callable[[Any], bool] = bool, patience: float = 60) -> Any:
        """The value of an expression, once it is as wanted."""
        until = time.monotonic() + patience
        while True:
            value = self.run(script)
            if holds(value):
                return value
            if time.monotonic() > until:
                raise Failed(f"waited {patience:.0f} s for {what}; it is {value!r}")
            time.sleep(0.1)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """`dark` or `light`, as a person's system would say."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.devtools("Emulation.setEmulatedMedia", {"features": [feature]})

    def picture(self, path: Path) -> None:
        """The whole page, as a PNG file."""
        shot = self.devtools("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list:
        """What the browser's console said since the last time, warnings and errors."""
        entries = self.command("se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]
