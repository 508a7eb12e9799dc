"""mkdocs calls these functions while it builds the site: pages that are made from the code are added, and links that leave docs/ are mended."""

import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]

from docsite import gallery, measure_pages, notebooks, reference  # noqa: E402

OF_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
}
"""Pages at the root of the project, and where they stand on the site."""
FORMULA = re.compile(r"\.\./src/mechdiff/measures/(\w+)/formula\.py")
"""Where the repository has a formula, the site has its page."""
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")


def made() -> dict[str, str]:
    """Every page of the site that is no file of docs/, as Markdown."""
    roots = {place: from_root((ROOT / name).read_text()) for name, place in OF_THE_ROOT.items()}
    code = {place: page() for place, page in reference.PAGES.items()}
    return {
        **roots,
        **code,
        **measure_pages.pages(),
        **notebooks.pages(ROOT / "docs" / "tutorials"),
        **gallery.pages(ROOT / "docs" / "gallery"),
    }


def from_root(text: str) -> str:
    """A page of the root as it stands in docs/: links into docs/ lose that folder, links elsewhere leave it."""

    def mended(found: re.Match[str]) -> str:
        target = found["target"]
        if target.startswith(("https:", "http:", "#", "mailto:")):
            return found[0]
        place = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
        return f"{found['image']}[{found['text']}]({place})"

    return LINK.sub(mended, text)


def on_config(config: Any) -> Any:
    """The measures, tutorials and guides that there are stand in the navigation."""
    from mechdiff.measures.catalogue import MEASURES

    listed = {
        "Measures": [{one.name: f"measures/{one.name}.md"} for one in MEASURES],
        "Tutorials": [f"tutorials/{path.stem}.md" for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))],
    }
    named = json.dumps(config.nav)
    listed["Guides"] = [
        path.name for path in sorted((ROOT / "docs").glob("*.md")) if f'"{path.name}"' not in named
    ]  # those that nobody placed
    for section in config.nav:
        for name, more in listed.items():
            if name in section:
                section[name] = [*section[name], *more]
    return config


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for place, text in made().items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return inside(markdown, page.file.src_uri)


def inside(markdown: str, place: str) -> str:
    """A page whose links stay on the site: a notebook's is to its page, one to a page of the root is to where it stands, and of any other that
    leaves docs/ the text is left."""
    folder = posixpath.dirname(place)

    def mended(found: re.Match[str]) -> str:
        target, _, anchor = found["target"].partition("#")
        there = posixpath.normpath(posixpath.join(folder, target))
        if target.endswith(".ipynb") and there.removesuffix(".ipynb") != place.removesuffix(".md"):
            return f"[{found['text']}]({target.removesuffix('.ipynb')}.md)"
        if not target or ":" in target or not there.startswith("../"):
            return found[0]
        if formula := FORMULA.fullmatch(there):
            return f"[{found['text']}]({posixpath.relpath(f'measures/{formula[1]}.md', folder or '.')})"
        if known := OF_THE_ROOT.get(there.removeprefix("../")):
            return f"[{found['text']}]({posixpath.relpath(known, folder or '.')}{'#' + anchor if anchor else ''})"
        return found["text"]

    return LINK.sub(mended, markdown)
