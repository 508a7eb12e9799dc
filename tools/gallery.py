"""This script makes the gallery of the site from finished runs: `python tools/gallery.py RUN ...` (make gallery RUNS="...").

Of each run it builds the page anew in a copy, takes a picture of its first screen, and writes what the page says first into
docs/gallery/gallery.json. The page itself is put beside the pictures, where the site finds it; it is too large to be committed.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from docsite import png

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
SCREEN = {"width": 1280, "height": 1000}
KEPT = ("cells", "maps", "steering", "report.html")
"""What a page is not built from."""


def entry(run: Path) -> dict[str, Any]:
    """What the gallery says of a run, and its page and picture in docs/gallery."""
    import mechdiff

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(run, Path(folder) / run.name, ignore=shutil.ignore_patterns(*KEPT)))
        opened = mechdiff.open_run(copy)
        page = opened.report()
        data = opened.overview().data()
        name = data["tuned"]
        (GALLERY / f"{name}.png").write_bytes(png.written(png.read(picture(page))))
        shutil.copy(page, GALLERY / f"{name}.html")
        figures = {figure: caption.split(". ")[0].rstrip(".") for figure, caption in opened.figures().items()}
    tiles = [{"title": tile["title"], "text": tile["text"]} for tile in data["tiles"]]
    return {"name": name, "base": data["base"], "tiles": tiles, "figures": figures}


def picture(page: Path) -> bytes:
    """The first screen of a page, as a PNG."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport=SCREEN, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        opened.wait_for_timeout(500)
        taken = opened.screenshot()
        browser.close()
    return taken


def main() -> None:
    entries = [entry(Path(name)) for name in sys.argv[1:]]
    (GALLERY / "gallery.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
    for one in entries:
        print(GALLERY / f"{one['name']}.png", (GALLERY / f"{one['name']}.png").stat().st_size)


if __name__ == "__main__":
    main()
