"""Drives headless Chromium over its DevTools protocol with nothing but aiohttp: navigate, evaluate, take pictures."""

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator

import aiohttp

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page:
    """One tab; `errors` collects console errors and exceptions, `requests` every address it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._next = 0
        self._answers: dict[int, asyncio.Future] = {}
        self._loaded = asyncio.Event()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
                continue
            method, values = event["method"], event["params"]
            if method == "Page.loadEventFired":
                self._loaded.set()
            elif method == "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                self.errors.append(values["exceptionDetails"]["text"])
            elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
                self.errors.append(str(values["args"]))
            elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
                self.errors.append(values["entry"]["text"])

    async def send(self, method: str, **values) -> dict:
        self._next += 1
        answer = self._answers[self._next] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._next, "method": method, "params": values})
        found = await asyncio.wait_for(answer, 60)
        assert "error" not in found, (method, found)
        return found["result"]

    async def start(self) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.send("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), 60)

    async def evaluate(self, expression: str):
        """The value of a JavaScript expression (awaited if it is a promise)."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    async def emulate(self, width: int, height: int = 900, scheme: str = "light", media: str = "") -> None:
        mobile = width < 600
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", media=media, features=features)

    async def picture(self, path, whole: bool = False) -> None:
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def browse() -> AsyncIterator[Page]:
    """A fresh headless Chromium with one tab; gone afterwards."""
    assert CHROMIUM, "no Chromium on this machine"
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            address = None
            while address is None:
                line = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
                assert line, "Chromium ended before it answered"
                if "DevTools listening on" in line:
                    address = line.split("ws://")[1].split("/")[0]
            drain = asyncio.create_task(process.stderr.read())
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{address}/json/list") as answer:
                    tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
                async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.start()
                    yield page
                    page._reader.cancel()
            drain.cancel()
        finally:
            process.terminate()
            await process.wait()


def in_browser(address, steps, width: int = 1280, scheme: str = "light") -> None:
    """Open `address`, await `steps(tab)`; then nothing may have failed, and nothing been asked of a network."""

    async def drive():
        async with browse() as tab:
            await tab.emulate(width, scheme=scheme)
            await tab.open(address)
            await steps(tab)
            assert tab.errors == []
            assert all(url.startswith(("file:", "data:")) for url in tab.requests), tab.requests

    asyncio.run(drive())
