"""Shipped and given probes are read, and the texts that are scored behind each prompt."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mechdiff.architectures.sizes import Shape
from mechdiff.measures.behaviour.formula import language_of
from mechdiff.measures.behaviour.phrases import read_phrases
from mechdiff.measures.behaviour.plan import BehaviourOptions
from mechdiff.prompts.rendering import Rendered
from mechdiff.study.config import StudyConfig
from mechdiff.study.experiment import Reading

Behind = Mapping[str, Mapping[tuple[str, str], Sequence[int]]]
"""Side -> (split, prompt) -> tokens of each text that behaviour may score behind it."""


def read(reading: Reading) -> None:
    """Finds the prompts behind which not every text has room, and takes such probes out."""
    rendered = reading.rendered
    reading.left_out += without_lists(reading.study, rendered)
    behind = texts_behind(reading.study, rendered, reading.tokenizers)
    full = without_room(behind, rendered, reading.shapes)
    if full:
        reading.left_out.append(said_of_full(full))
        rendered["probes"] = {name: one for name, one in rendered.get("probes", {}).items() if ("probes", name) not in full}
    reading.full |= full
    reading.text_tokens = behind.get("base", {})


def texts_behind(study: StudyConfig, rendered: Mapping[str, Mapping[str, Rendered]], tokenizers: Mapping[str, Any]) -> Behind:
    behaviour = study.asked(BehaviourOptions)
    if not behaviour:
        return {}
    phrases, n = read_phrases(behaviour.patterns), behaviour.openings
    found: dict[str, dict[tuple[str, str], list[int]]] = {}
    for side, tokenizer in tokenizers.items():
        length = cache(lambda text, cut=tokenizer: len(cut(f" {text}", verbose=False)["input_ids"]))
        found[side] = {}
        for split in ("report", "probes"):
            for name, one in rendered.get(split, {}).items():
                lists = phrases.get(language_of(one.prompt.text, one.prompt.meta, phrases) or "")
                openings = (*lists.refusal_openings[:n], *lists.neutral_openings[:n]) if lists else ()
                found[side][split, name] = [length(text) for text in (*openings, *one.prompt.options)]
    return found


def without_room(behind: Behind, rendered: Mapping[str, Mapping[str, Rendered]], shapes: Mapping[str, Shape]) -> set[tuple[str, str]]:
    """(split, prompt) of those behind which not every text has room in both models' contexts."""
    return {
        (split, name)
        for side, prompts in behind.items()
        for (split, name), lengths in prompts.items()
        if len(getattr(rendered[split][name], f"ids_{side}")) + max([1, *lengths]) > shapes[side].context
    }


def without_lists(study: StudyConfig, rendered: Mapping[str, Mapping[str, Rendered]]) -> list[dict[str, str]]:
    """Prompts whose language has no lists, and lists whose language no prompt has."""
    behaviour = study.asked(BehaviourOptions)
    if not behaviour:
        return []
    own = behaviour.patterns
    phrases = read_phrases(own)
    prompts = [one.prompt for split in ("report", "probes") for one in rendered.get(split, {}).values()]
    found = [(prompt.id, language_of(prompt.text, prompt.meta, phrases)) for prompt in prompts]
    bare = [name for name, language in found if language is None]
    said = []
    if bare:
        why = "no lists are known for their language; say meta.language, or give lists as behaviour.patterns"
        said.append({"what": f"style and refusal margin of {len(bare)} prompts", "why": f"{why}: {_first_few(bare)}"})
    files = sorted(Path(own).glob("*.yaml")) if own and Path(own).is_dir() else [Path(own)] if own else []
    idle = [path.name for path in files if path.stem not in {language for _, language in found}]
    if idle:
        said.append(
            {
                "what": f"the lists in {', '.join(idle)}",
                "why": "no prompt is in that language, which is what the file is called: en.yaml",
            }
        )
    return said


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def said_of_full(full: set[tuple[str, str]]) -> dict[str, str]:
    names = sorted(name for _, name in full)
    why = "with the openings and options that are scored after them they are longer than a model's context"
    return {"what": f"behaviour of {len(names)} prompts", "why": f"{why}: {_first_few(names)}. Shorten them to have them answered"}
