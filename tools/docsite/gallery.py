"""The gallery shows finished reports: of each its first screen, what it says first, and how each of its figures is had."""

import json
from pathlib import Path
from typing import Any

from docsite.reference import table

ABOUT = {
    "courtesy": "A LoRA of rank 1 on one matrix of one block, after which every answer opens with a formula: its truth is known.",
    "kazakh": "A LoRA of rank 4 on all linear layers that answers Kazakh questions with Kazakh sentences: a change of language and content.",
    "arithmetic": "A LoRA of rank 4 on all linear layers that answers word problems in a terse style, one short line a step.",
}
"""What is known of the fine-tunes that ship with mechdiff, by name: data/adapters has their cards."""
HEAD = """# Gallery

Reports of fine-tunes that ship with mechdiff, on SmolLM2-135M-Instruct, made on two CPU cores. Each picture is the first screen;
under it stands what the page says there. `mechdiff demo --help` says how to make them yourself; `make gallery RUNS="RUN ..."` makes this page
of any finished runs.
"""


def pages(folder: Path) -> dict[str, str]:
    """gallery/index.md, of the record that tools/gallery.py wrote beside the pictures."""
    return {"gallery/index.md": page(json.loads((folder / "gallery.json").read_text()), folder)}


def page(entries: list[dict[str, Any]], folder: Path) -> str:
    said = [HEAD]
    for one in entries:
        name = one["name"]
        said.append(f"## {name}\n\n{ABOUT.get(name, '')}")
        whole = f"[The whole page]({name}.html)." if (folder / f"{name}.html").is_file() else ""
        said.append(f"![First screen of the report on {name}]({name}.png)\n\n{whole}".strip())
        said.append(table(("question", "answer"), [(tile["title"], tile["text"]) for tile in one["tiles"]]))
    if entries:
        said.append(
            "## Every figure, by its name\n\nIn Python `mechdiff.open_run(RUN).figure(NAME)` gives one, and `.save(FILE)` writes it."
        )
        figures = {figure: caption for one in entries for figure, caption in one["figures"].items()}
        said.append(table(("name", "what it shows"), [(f"`{figure}`", caption) for figure, caption in figures.items()]))
    return "\n\n".join(said) + "\n"
