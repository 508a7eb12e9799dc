"""A page for each measure is made from its formula's docstring, its options, its metrics and what its figures say of themselves."""

import inspect
import re
from importlib import import_module
from types import ModuleType
from typing import Any

from docsite import reference


def _formula(name: str) -> ModuleType:
    return import_module(f"mechdiff.measures.{name}.formula")


def figures(reading: str) -> dict[str, str]:
    """Figure -> how to read it, and when it misleads, as HTML, from the macros of a reading.html; those with something to fill in are left out."""
    found = dict(re.findall(r"{%-? macro (\w+)\(\) -?%}\s*(.*?){%-? endmacro", reading, re.DOTALL))
    return {name: " ".join(text.split()) for name, text in found.items() if "{{" not in text and "{%" not in text}


def measure_page(measure: Any) -> str:
    """measures/NAME.md."""
    from mechdiff import terms

    question, _, rest = (inspect.getdoc(_formula(measure.name)) or "").partition("\n\n")
    options = reference.keys(measure.experiment.options)
    metrics = [(one.name, terms.METRICS.get(one.name)) for one in measure.numbers.metrics]
    page = [
        f"# {measure.name}",
        f"**{measure.question}**",
        f"`{measure.name}` in a study file and in `mechdiff run --measures {measure.name}`.",
        f"## What it computes\n\n{question}\n\n{rest}",
    ]
    reading = figures(measure.chapter.reading.read_text()) if measure.chapter.reading else {}
    if reading:
        page.append("## How to read its figures\n\n" + "\n\n".join(f"### {name}\n\n{text}" for name, text in reading.items()))
    if known := [(f"`{name}`", term.label, term.long) for name, term in metrics if term]:
        page.append("## Its metrics\n\n" + reference.table(("key", "label", "meaning"), known))
    page.append("## Its options\n\n" + (reference.table(("key", "takes", "default", "meaning"), options) if options else "It has none."))
    return "\n\n".join(page) + "\n"


def pages() -> dict[str, str]:
    """Every page on measures, by where it stands on the site."""
    from mechdiff.measures.catalogue import MEASURES

    return {f"measures/{one.name}.md": measure_page(one) for one in MEASURES}
