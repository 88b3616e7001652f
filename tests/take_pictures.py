"""Pictures of a report as a stranger sees it: light, dark and phone, the whole page in screens, and an open sample.

    python tests/take_pictures.py raydr-demo/report/index.html FOLDER

To be looked at before a change of the page is committed: no test sees that a page is ugly.
"""

import asyncio
import sys
from pathlib import Path

import browser

# name: width, height of a screen and colour scheme; px.
VIEWS = {"light": (1280, 1400, "light"), "dark": (1280, 1400, "dark"), "phone": (390, 844, "light")}
OPEN = "document.querySelector('#gallery li:not([hidden]) button')?.click()"
UNFOLD = 'document.querySelectorAll("details").forEach(item => { item.open = true; })'


async def take(address: str, folder: Path) -> list[Path]:
    """Write `{view}-{screen}.png` for every screen of the page, and `{view}-sample.png`; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    async with browser.browse() as tab:
        for name, (width, height, scheme) in VIEWS.items():
            await tab.emulate(width, height, scheme)
            await tab.open(address)
            await tab.evaluate(UNFOLD)
            whole = await tab.evaluate("document.documentElement.scrollHeight")
            for number, top in enumerate(range(0, whole, height)):
                await tab.evaluate(f'scrollTo({{top: {top}, behavior: "instant"}})')
                await asyncio.sleep(0.3)  # pictures are decoded as they come into view
                written.append(folder / f"{name}-{number:02d}.png")
                await tab.picture(written[-1])
            await tab.evaluate(OPEN)
            written.append(folder / f"{name}-sample.png")
            await tab.picture(written[-1])
    return written


if __name__ == "__main__":
    page, to = map(Path, sys.argv[1:])
    print(*asyncio.run(take(page.resolve().as_uri(), to)), sep="\n")
