"""A model card for the Hub says what a fine-tune changed: front matter as the Hub reads it, and a block of the six first answers.

The block stands between two comments, so that it is replaced and never doubled. What a card says already is not overwritten.
https://huggingface.co/docs/hub/model-cards
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mechdiff.errors import RunError
from mechdiff.report import record
from mechdiff.report.export import escaped
from mechdiff.report.overview.overview import Overview
from mechdiff.store.disk import writing

START, END = "<!-- mechdiff:start -->", "<!-- mechdiff:end -->"
TAGS = ("mechdiff", "model-diffing", "interpretability")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_IN_MEMORY = re.compile(r" \(in memory, \w+\)$")
_FRONT = re.compile(r"\A---\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)


def front_matter(manifest: dict[str, Any], base_model: str | None = None) -> dict[str, Any]:
    """The fields that the Hub reads. `base_model` is left out where neither the run nor the caller says an id that the Hub could have."""
    pair = manifest["pair"]
    adapter = bool(pair["tuned"].get("adapter"))
    stated = (manifest.get("lineage") or {}).get("stated_base")
    base = next((one for one in (base_model, pair["base"]["ref"], stated) if one and _HUB.fullmatch(one)), None)
    return {
        **({"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"} if base else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": list(TAGS),
    }


def block(overview: Overview, manifest: dict[str, Any], page: str = "report.html", base_model: str | None = None) -> str:
    """The six answers as a table of Markdown, each with a link to its section of the page; `base_model`: the base's id on the Hub."""
    base = _text(_IN_MEMORY.sub("", record.short_name(manifest, "base")))
    base = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else base
    n = (manifest.get("prompts") or {}).get("n", {})
    asked = f"{n['report']} test prompts of {sum(n.values())}" if "report" in n else f"{sum(n.values())} prompts"
    version = (manifest.get("versions") or {}).get("mechdiff", "")
    lines = [
        START,
        "## What this fine-tune changed",
        "",
        f"Compared with {base} on {asked}, by mechdiff {version}. [Full report]({page})",
        "",
        "| Question | Answer |",
        "|---|---|",
        *(f"| [{tile.title}]({page}#{tile.section}) | {_text(tile.text)} |" for tile in overview.tiles),
        END,
    ]
    return "\n".join(lines) + "\n"


def card(fields: dict[str, Any], told: str) -> str:
    """A card of its own."""
    return f"---\n{_yaml(fields)}---\n\n{told}"


def into(path: Path, fields: dict[str, Any], told: str) -> None:
    """Puts front matter and block into a card; a file that is not there is made. Raises RunError: broken comments or front matter."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    front = _FRONT.match(text)
    if front is None and text.startswith("---"):
        raise RunError(f"{path}: it begins with --- and its front matter does not end. Close it with a line ---, or take the line out.")
    kept, body = _fields(path, front[1]) if front else {}, text[front.end() :] if front else text
    starts, ends = body.count(START), body.count(END)
    if (starts, ends) not in ((0, 0), (1, 1)) or (starts and body.index(START) > body.index(END)):
        raise RunError(f"{path}: found {starts} of {START} and {ends} of {END}, expected one of each, in this order, or none.")
    if starts:
        before, rest = body.split(START)
        body = before + told.rstrip("\n") + rest.split(END)[1]
    else:
        body = f"{body.rstrip()}\n\n{told}" if body.strip() else f"\n{told}"
    merged = _merged(kept, fields)
    unchanged = front is not None and merged == kept
    head = text[: front.end()] if front and unchanged else f"---\n{_yaml(merged)}---\n"
    with writing(path.parent):
        path.write_text(head + body, encoding="utf-8")


def _fields(path: Path, front: str) -> dict[str, Any]:
    try:
        stated = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise RunError(f"{path}: its front matter is no YAML ({error}). Mend it, or take it out.") from error
    if stated is not None and not isinstance(stated, dict):
        raise RunError(f"{path}: its front matter is no list of fields (name: value). Mend it, or take it out.")
    return stated or {}


def _merged(kept: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """What the card says, then what it does not say; tags of both."""
    own = kept.get("tags") or []
    tags = [own] if isinstance(own, str) else list(own)
    relation = {} if "base_model" not in kept or kept["base_model"] == fields.get("base_model") else {"base_model_relation"}
    added = {name: value for name, value in fields.items() if name not in kept and name not in relation}
    return {**kept, **added, "tags": [*tags, *(tag for tag in fields["tags"] if tag not in tags)]}


def _yaml(fields: dict[str, Any]) -> str:
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _text(text: str) -> str:
    """A text in a cell of Markdown."""
    return escaped(" ".join(text.split()))
