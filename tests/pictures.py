"""Take the pictures of the page that the documentation shows: `python -m tests.pictures [FOLDER]`.

Runs the real page on the shipped zoo in a headless Chromium, at two widths, in light and dark.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect

from app import theme
from app.library import CastBackend
from tests.pages import CastPage, chromium, served

SIZES = {1440: 900, 390: 844}
AT_FIRST = {"Generate": "translate", "Heads": "heads", "Explore": "explore"}
AFTER_WORK = {"Evaluate": "evaluate", "Export": "export"}
METHODS = ("Hosted by words", "Instant LoRA", "Kernel, the paper's form", "Proxy tuning", "Truncate and pad")


def take(folder: Path) -> None:
    """Write one picture for each tab, width and theme."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as work,
        served(CastBackend(), Path(work), theme.assets_folder() / "showcase.json") as address,
        chromium() as browser,
    ):
        visitors: tuple[tuple[Any, dict[str, str]], ...] = (
            (None, AT_FIRST),
            (_who_has_worked(browser, address), AFTER_WORK),
        )
        for look in ("light", "dark"):
            for width, height in SIZES.items():
                for kept, tabs in visitors:
                    context = browser.new_context(
                        viewport={"width": width, "height": height}, storage_state=kept
                    )
                    page = CastPage(context, address, look)
                    for tab, name in tabs.items():
                        page.tab(tab)
                        if tab not in ("Generate", "Export"):
                            page.plot.first.wait_for()
                        page.page.wait_for_timeout(1500)  # what moves comes to rest
                        page.page.screenshot(path=folder / f"{name}-{width}-{look}.png", full_page=True)
                    context.close()


def _who_has_worked(browser: Browser, address: str) -> Any:
    """What the browser of a visitor keeps who has measured some methods and translated an adapter."""
    context = browser.new_context()
    page = CastPage(context, address)
    page.pick_mode("instant")
    page.translate()
    expect(page.job).to_contain_text("Done in", timeout=600_000)
    page.tab("Evaluate")
    page.tick(*METHODS)
    page.run()
    expect(page.job).to_contain_text(f"Done: {len(METHODS)} of", timeout=600_000)
    page.settle()
    kept = context.storage_state()
    context.close()
    return kept


if __name__ == "__main__":
    take(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "pictures"
    )
