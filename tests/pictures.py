"""Take the pictures of the page that the documentation shows: `python -m tests.pictures [FOLDER]`.

Runs the real page on the shipped zoo in a headless Chromium, at two widths, in light and dark.
"""

import sys
import tempfile
from pathlib import Path

from app import theme
from app.library import CastBackend
from tests.pages import CastPage, chromium, served

SIZES = {1440: 900, 390: 844}
TABS = {
    "Generate": "translate",
    "Heads": "heads",
    "Explore": "explore",
    "Evaluate": "evaluate",
    "Export": "export",
}


def take(folder: Path) -> None:
    """Write one picture for each tab, width and theme."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as work,
        served(CastBackend(), Path(work), theme.assets_folder() / "showcase.json") as address,
        chromium() as browser,
    ):
        for look in ("light", "dark"):
            for width, height in SIZES.items():
                context = browser.new_context(viewport={"width": width, "height": height})
                page = CastPage(context, address, look)
                for tab, name in TABS.items():
                    page.tab(tab)
                    if tab != "Generate":
                        page.plot.wait_for()
                    page.page.wait_for_timeout(1500)  # what moves comes to rest
                    page.page.screenshot(path=folder / f"{name}-{width}-{look}.png", full_page=True)
                context.close()


if __name__ == "__main__":
    take(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "pictures"
    )
