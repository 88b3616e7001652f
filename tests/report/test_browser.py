"""The page in headless Chromium: no error, no request, slider, sorting, dialog, phone width, accessibility."""

import asyncio
from pathlib import Path

import aiohttp.web
import browser
import fake_run
import numpy as np
import pytest
import take_pictures
from browser import in_browser
from PIL import Image

from raydr import schema, shards
from raydr.report import gallery, page, server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium"),
]


@pytest.fixture(scope="module")
def address(single, tmp_path_factory):
    html, _ = page.render(*single)
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(html)
    return file.as_uri()


def test_slider_sorting_and_dialog(address):
    async def steps(tab):
        count = 'Number(document.querySelector(`[data-group="0"]`).textContent)'
        groups = await tab.evaluate('JSON.parse(document.querySelector("#data").textContent).groups')
        assert await tab.evaluate(count) == groups[0]["at_or_below"][90] - groups[0]["below"][70]
        clip = 'document.querySelector(`[data-band="clip"]`).getAttribute("width")'
        before, seen = await tab.evaluate(clip), "document.querySelectorAll('#gallery li:not([hidden])').length"
        shown = await tab.evaluate(seen)
        # By keyboard: the lower end moves from .70 to .40.
        await tab.evaluate('document.querySelector("#band-low").focus()')
        for _ in range(30):
            await tab.press("ArrowLeft", 37)
        assert await tab.evaluate('document.querySelector("#band-output").textContent') == "0.40 – 0.90"
        assert await tab.evaluate(count) == groups[0]["at_or_below"][90] - groups[0]["below"][40]
        assert await tab.evaluate(clip) != before
        assert await tab.evaluate(seen) > shown
        # The ends cannot cross.
        await tab.evaluate(
            '(low => { low.value = 1; low.dispatchEvent(new Event("input")); })(document.querySelector("#band-low"))'
        )
        assert await tab.evaluate('document.querySelector("#band-output").textContent') == "0.89 – 0.90"
        await tab.evaluate('document.querySelector("#band-reset").click()')
        assert await tab.evaluate('document.querySelector("#band-output").textContent') == "0.70 – 0.90"

        rows = '[...document.querySelectorAll("table.sortable tbody tr")]'
        column = f"{rows}.map(row => parseFloat(row.children[2].dataset.value))"
        press = 'document.querySelectorAll("table.sortable thead button")[2].click()'
        await tab.evaluate(press)
        values = await tab.evaluate(column)
        assert values == sorted(values, reverse=True)
        assert await tab.evaluate('document.querySelectorAll("table.sortable th[aria-sort=descending]").length') == 1
        await tab.evaluate(press)
        assert await tab.evaluate(column) == sorted(values)

        await tab.evaluate("document.querySelector('#gallery li:not([hidden]) button').focus()")
        await tab.evaluate("document.activeElement.click()")
        assert await tab.evaluate('document.querySelector("#sample").open')
        command = await tab.evaluate('document.querySelector("#sample-command").textContent')
        assert command.startswith("raydr regenerate run ")
        assert await tab.evaluate('document.querySelectorAll("#sample-table tbody tr").length') == 4
        await tab.press("ArrowRight", 39)
        assert await tab.evaluate('document.querySelector("#sample-command").textContent') != command
        await tab.press("Escape", 27)
        assert not await tab.evaluate('document.querySelector("#sample").open')
        assert await tab.evaluate("document.activeElement.className") == "thumb"

        await tab.evaluate(
            '(list => { list.value = "recall_3"; list.dispatchEvent(new Event("change")); })'
            '(document.querySelector("[data-map-metric]"))'
        )
        maps = await tab.evaluate('JSON.parse(document.querySelector("#data").textContent).maps')
        cell = await tab.evaluate('document.querySelector("table.map tbody td").textContent')
        assert cell == f"{100 * maps[0]['values']['recall_3'][0][0]:.1f}"

    in_browser(address, steps)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width_needs_no_sideways_scrolling(address, scheme):
    async def steps(tab):
        assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
        # The longest answer there is, which these numbers do not give.
        words = '"no difference from oversampling is shown"'
        await tab.evaluate(f'document.querySelector(".answer strong").textContent = {words}')
        assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
        await tab.evaluate("document.querySelector('#gallery li:not([hidden]) button').click()")
        inside = "document.querySelector('#sample').getBoundingClientRect()"
        assert await tab.evaluate(f"{inside}.left") >= 0
        assert await tab.evaluate(f"{inside}.right") <= 390
        for part in ("#sample", "#sample .scroll"):
            wide = f"(part => part.scrollWidth - part.clientWidth)(document.querySelector('{part}'))"
            assert await tab.evaluate(wide) <= 0, part
        dark = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark == "rgb(19, 21, 25)") == (scheme == "dark")

    in_browser(address, steps, width=390, scheme=scheme)


def noise(grade, rng):
    """What no codec makes small, in the size of a thumbnail."""
    return rng.integers(0, 256, (gallery.THUMBNAIL_PX, gallery.THUMBNAIL_PX, 3), np.uint8)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A page that is as heavy as a page gets: its gallery is up to its limit, whatever the run."""
    folder = tmp_path_factory.mktemp("full")
    recipe, sizes = fake_run.recipe(3, 10, gallery=10_000), {"num_replicates": 3, "num_seeds": 10}
    picture = len(gallery.data_uri(noise(0, np.random.default_rng(0))))
    per_group = gallery.MAX_BYTES // picture // 12  # 3 replicates x 2 kinds x 2 grades, all shown
    run = fake_run.write_run(folder / "run", num_samples=per_group, painter=noise, **sizes)
    html, _ = page.render(run, recipe)
    (folder / "index.html").write_text(html)
    assert 0.9 * gallery.MAX_BYTES < len(html) < 15e6
    more = fake_run.write_run(folder / "more", num_samples=per_group + 4, painter=noise, **sizes)
    assert len(page.render(more, recipe)[0]) < len(html)  # every second one only
    return (folder / "index.html").as_uri()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["address", "full"])
def test_first_paint_within_a_second(which, request):
    address = request.getfixturevalue(which)

    async def steps(tab):
        found = 'performance.getEntriesByName("first-contentful-paint")[0].startTime'
        paints = []
        for _ in range(3):  # the best of three: other work on the machine delays single ones
            await tab.open(address)
            paints.append(await tab.evaluate(f"new Promise(done => setTimeout(() => done({found}), 300))"))
        assert min(paints) < 1000, paints

    in_browser(address, steps)


def test_pictures_of_every_screen_are_taken(address, tmp_path):
    """What a person looks at before a change of the page is committed."""
    written = asyncio.run(take_pictures.take(address, tmp_path / "pictures"))
    assert {path.stem.split("-")[0] for path in written} == set(take_pictures.VIEWS)
    for path in written:
        name = path.stem.split("-")[0]
        width, height, _ = take_pictures.VIEWS[name]
        picture = Image.open(path).convert("L")
        factor = 2 if name == "phone" else 1
        assert picture.size == (factor * width, factor * height)
        assert len(picture.getcolors()) > 10, "nothing but a colour or two"
    shades = {name: np.asarray(Image.open(tmp_path / f"pictures/{name}-00.png")).mean() for name in ("light", "dark")}
    assert shades["light"] > 200 > 80 > shades["dark"]


def test_print_hides_controls_and_keeps_the_light_palette(address):
    async def steps(tab):
        await tab.emulate(800, scheme="dark", media="print")
        assert await tab.evaluate('getComputedStyle(document.querySelector("nav.contents")).display') == "none"
        assert await tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 252, 250)"

    in_browser(address, steps)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(address, scheme):
    axe_core = pytest.importorskip("axe_core_python")
    (script,) = Path(axe_core.__file__).parent.rglob("axe.min.js")

    async def steps(tab):
        await tab.evaluate('document.querySelectorAll("details").forEach(item => { item.open = true; })')
        # Evaluated by the debugger, so the page's own policy against foreign scripts still holds.
        await tab.evaluate(script.read_text() + "; 0")
        found = "axe.run().then(result => result.violations.map(each => [each.id, each.impact, each.nodes[0].html]))"
        assert await tab.evaluate(found) == []
        await tab.evaluate("document.querySelector('#gallery li:not([hidden]) button').click()")
        assert await tab.evaluate(found.replace("run()", 'run("#sample")')) == []

    in_browser(address, steps, scheme=scheme)


def test_the_live_page_follows_the_run_and_keeps_what_was_set(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "FRESH_SECONDS", 0)
    run = fake_run.write_run(tmp_path / "run", num_seeds=1, num_test=4, num_samples=8)
    table = shards.read(run, "synthetic/plain-g1-0", schema.SYNTHETIC)
    made = (
        '[...document.querySelectorAll("#progress tbody tr")]'
        '.find(row => row.textContent.includes("plain-g1-0")).children[2].textContent'
    )

    async def shown(tab):
        try:
            return await tab.evaluate(made)
        except AssertionError:  # between the old page and the new one
            return None

    async def drive():
        live = server.Live(run, fake_run.recipe(num_seeds=1))
        runner = aiohttp.web.AppRunner(server.application(live, "127.0.0.1"))
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        try:
            async with browser.browse() as tab:
                await tab.emulate(1280)
                await tab.open(address)
                assert await shown(tab) == "8"
                move = '(low => { low.value = 0.4; low.dispatchEvent(new Event("input")); })'
                await tab.evaluate(f'{move}(document.querySelector("#band-low"))')
                await asyncio.sleep(4)  # the page has asked for the version once
                shards.commit(run, "synthetic/plain-g1-0/g1-000001.parquet", table, schema.SYNTHETIC, "synthetic")
                for _ in range(60):
                    if await shown(tab) == "16" and await tab.evaluate("document.readyState") == "complete":
                        break
                    await asyncio.sleep(1)
                assert await shown(tab) == "16"
                assert await tab.evaluate('document.querySelector("#band-output").textContent') == "0.40 – 0.90"
                assert tab.errors == []
                assert all(url.startswith((address, "data:")) for url in tab.requests), tab.requests
        finally:
            await runner.cleanup()

    asyncio.run(drive())
