"""The report of the debug run, as the pipeline wrote it, in headless Chromium."""

import json

import browser
import pytest

from raydr import recipes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the fixture's run included
    pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium"),
]

ARMS = '[...document.querySelectorAll("table.sortable tbody tr")]'


def test_the_band_the_table_and_a_sample(finished_run):
    results = json.loads((finished_run / "report" / "results.json").read_text())
    groups, recipe = results["scores"]["groups"], recipes.named("debug")
    assert sum(group["made"] for group in groups) == 4 * 8
    # Images of so short a training are not all a fundus: no band counts those.
    usable = {
        (entry["kind"], int(grade)): entry["made"] - entry["unusable"]
        for grades in results["acceptance"].values()
        for grade, entry in grades.items()
    }

    async def steps(tab):
        async def press(selector, key, code):
            await tab.evaluate(f"document.querySelector('{selector}').focus()")
            await tab.press(key, code)

        async def counts():
            found = '[...document.querySelectorAll("[data-group]")].map(cell => Number(cell.textContent))'
            return await tab.evaluate(found)

        # The band as the recipe has it, then all scores, then the upper half.
        low, high = (round(100 * end) for end in results["band"])
        assert await counts() == [group["at_or_below"][high] - group["below"][low] for group in groups]
        await press("#band-low", "Home", 36)
        await press("#band-high", "End", 35)
        assert await counts() == [usable[group["kind"], group["grade"]] for group in groups]
        for _ in range(50):
            await press("#band-low", "ArrowRight", 39)
        assert await tab.evaluate('document.querySelector("#band-output").textContent') == "0.50 – 1.00"
        assert await counts() == [group["at_or_below"][100] - group["below"][50] for group in groups]
        await press("#band-low", "Home", 36)

        # Every arm with the number that the stored predictions give; sorted both ways.
        cells = f"{ARMS}.map(row => [row.children[0].dataset.value, Number(row.children[2].dataset.value)])"
        shown = dict(await tab.evaluate(cells))
        assert set(shown) == set(recipe.sweep.arms)
        for arm, value in shown.items():
            trials = [trial["balanced_accuracy"] for trial in results["arms"][arm].values()]
            assert value == pytest.approx(sum(trials) / len(trials), abs=1e-6)
        for order in (True, False):
            await tab.evaluate('document.querySelectorAll("table.sortable thead button")[2].click()')
            values = [value for _, value in await tab.evaluate(cells)]
            assert values == sorted(values, reverse=order)

        # A sample: every member's word, and the command that makes it again.
        await tab.evaluate("document.querySelector('#gallery button').click()")
        assert await tab.evaluate('document.querySelector("#sample").open')
        members = await tab.evaluate('document.querySelectorAll("#sample-table tbody tr").length')
        assert members == len(recipe.ensemble.members) + 1
        command = await tab.evaluate('document.querySelector("#sample-command").textContent')
        assert command.startswith(f"raydr regenerate {finished_run.name} ")
        await tab.press("Escape", 27)
        assert not await tab.evaluate('document.querySelector("#sample").open')

    browser.in_browser((finished_run / "report" / "index.html").as_uri(), steps)
