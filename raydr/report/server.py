"""`raydr watch`: the report, live, while a run is being made.

Serves the page rendered from what is committed now; the page asks for `version` every few seconds and
reloads when something was added. Loopback unless told otherwise, and then only to requests that name
this machine, so that a web site cannot reach it through a name of its own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from raydr.errors import UserError
from raydr.identity import fingerprint
from raydr.report import page, tables
from raydr.report.progress import Rates
from raydr.storage import Run

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Seconds during which a version holds: many readers, one listing.
FRESH_SECONDS = 2.0
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Live:
    """The page of a run as of its latest commit, rendered when somebody asks and something has changed."""

    def __init__(self, run: Run, recipe: dict[str, Any] | None = None) -> None:
        self.run = run
        self.recipe = recipe or run.read_json("recipe.json")["recipe"]
        self._rendering = asyncio.Lock()
        self._looked = float("-inf")
        self._rates = Rates()
        self._version = ""
        self._rendered: tuple[str, str, dict[str, Any]] | None = None

    async def version(self) -> str:
        """Hash of what is committed, of the training logs' names and sizes, and of which stages have ended."""
        if time.monotonic() - self._looked > FRESH_SECONDS:
            self._version = await asyncio.to_thread(self._list)
            self._looked = time.monotonic()
        return self._version

    async def current(self) -> tuple[str, dict[str, Any]]:
        """(HTML, results) of the present version; a second reader waits for the first one's rendering."""
        async with self._rendering:
            version = await self.version()
            if self._rendered is None or self._rendered[0] != version:
                html, results = await asyncio.to_thread(page.render, self.run, self.recipe, self._rates)
                self._rendered = version, html, results
            return self._rendered[1:]

    def _list(self) -> str:
        runs = [self.run]
        if self.recipe["num_replicates"] > 1:
            runs += [self.run.child(f"replicate-{index}") for index in range(self.recipe["num_replicates"])]
        records = [each.list("_commits") for each in runs]
        self._rates.see(name for names in records for name, _ in names)
        ended = [[each.exists(f"logs/stage-{stage}.json") for stage in tables.STAGES] for each in runs]
        return fingerprint(records, [each.list("logs/finetune") for each in runs], ended)


def application(live: Live, host: str) -> web.Application:
    """/ (the page), /version, /results.json."""

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # Without this, a site could point its own name at 127.0.0.1 and read the page (DNS rebinding).
        named = urlsplit(f"//{request.host}").hostname
        if host in LOOPBACK and named not in LOOPBACK:
            raise web.HTTPForbidden(text="this server answers to localhost only\n")
        try:
            response = await handler(request)
        except UserError as error:
            response = web.Response(status=503, text=f"{error}\n")
        response.headers.update(HEADERS)
        return response

    async def index(request: web.Request) -> web.Response:
        html, _ = await live.current()
        return web.Response(text=html, content_type="text/html")

    async def version(request: web.Request) -> web.Response:
        return web.Response(text=await live.version())

    async def results(request: web.Request) -> web.Response:
        _, values = await live.current()
        return web.json_response(values)

    app = web.Application(middlewares=[guard])
    app.add_routes([web.get("/", index), web.get("/version", version), web.get("/results.json", results)])
    return app


def serve(
    run: Run,
    recipe: dict[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 8266,
    on_start: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until interrupted; `on_start` gets the address. UserError where the port is taken; MissingInput
    without a recipe in the run."""
    asyncio.run(_serve(run, recipe, host, port, on_start))


async def _serve(
    run: Run, recipe: dict[str, Any] | None, host: str, port: int, on_start: Callable[[str], None]
) -> None:
    runner = web.AppRunner(application(Live(run, recipe), host), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise UserError(f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host") from None
    on_start(f"http://{'[' + host + ']' if ':' in host else host}:{runner.addresses[0][1]}/")
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
