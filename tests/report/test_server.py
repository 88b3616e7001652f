"""`watch`: the live page over loopback."""

import asyncio
import socket
import threading

import aiohttp
import fake_run
import pytest

from raydr import schema, shards
from raydr.errors import MissingInput, UserError
from raydr.report import server
from raydr.storage import Run


def serving(run, recipe, steps, host="127.0.0.1"):
    async def drive():
        runner = aiohttp.web.AppRunner(server.application(server.Live(run, recipe), host))
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
                await steps(session)
        finally:
            await runner.cleanup()

    asyncio.run(drive())


def test_page_results_and_version(single):
    async def steps(session):
        async with session.get("/") as answer:
            assert answer.status == 200
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            html = await answer.text()
        assert "connect-src 'self'" in html
        assert 'fetch("version"' in html
        async with session.get("/results.json") as answer:
            assert len((await answer.json())["table"]) == 6
        async with session.get("/version") as answer:
            assert len(await answer.text()) == 16
        async with session.get("/recipe.json") as answer:
            assert answer.status == 404

    serving(*single, steps)


def test_a_commit_changes_the_version_and_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "FRESH_SECONDS", 0)
    source = fake_run.write_run(tmp_path / "source", num_seeds=1, num_test=4, num_samples=4)
    run = Run(str(tmp_path / "run"))

    async def steps(session):
        async with session.get("/") as answer:
            assert "raydr synthesize" in await answer.text()
        async with session.get("/version") as answer:
            before = await answer.text()
        key = "synthetic/plain-g1-0/g1-000000.parquet"
        table = shards.read(source, "synthetic/plain-g1-0", schema.SYNTHETIC)
        shards.commit(run, key, table, schema.SYNTHETIC, "synthetic")
        async with session.get("/version") as answer:
            assert await answer.text() != before
        async with session.get("/") as answer:
            assert "Mild, plain generator" in await answer.text()

    serving(run, fake_run.recipe(), steps)


def test_other_names_are_refused_on_loopback(single):
    async def refused(session):
        async with session.get("/", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
        for name in ("localhost:1", "[::1]:80", "127.0.0.1"):
            async with session.get("/version", headers={"Host": name}) as answer:
                assert answer.status == 200

    serving(*single, refused)

    async def allowed(session):
        async with session.get("/version", headers={"Host": "cluster.example:8266"}) as answer:
            assert answer.status == 200

    serving(*single, allowed, host="0.0.0.0")


def test_a_damaged_run_answers_with_its_sentence(tmp_path):
    run = fake_run.write_run(tmp_path, num_seeds=1, num_test=4, num_samples=4)
    run.replace("synthetic/plain-g1-0/g1-000000.parquet", b"broken")

    async def steps(session):
        async with session.get("/") as answer:
            assert answer.status == 503
            assert "raydr repair" in await answer.text()

    serving(run, fake_run.recipe(), steps)


def test_users_mistakes(single, tmp_path):
    with pytest.raises(MissingInput):
        server.serve(Run(str(tmp_path)), port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="choose another --port"):
        server.serve(*single, port=taken.getsockname()[1])


def test_serve_says_where(single):
    addresses = []
    started = threading.Event()

    def on_start(address):
        addresses.append(address)
        started.set()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.serve(*single, port=0, on_start=on_start)
    assert started.is_set()
    assert addresses[0].startswith("http://127.0.0.1:")
