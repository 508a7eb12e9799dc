"""A study's prompts are read from its files and divided into fit, select and report."""

from collections.abc import Mapping
from typing import Any

from mechdiff.errors import PromptError
from mechdiff.prompts.sets import SPLITS, Prompt, read_prompts, split_prompts
from mechdiff.spacing import evenly_spaced
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.config import StudyConfig
from mechdiff.study.experiment import Experiment, PromptSet, asked

QUICK = 6
"""Prompts of each split that a quick run keeps."""


def read_splits(study: StudyConfig, experiments: Mapping[str, Experiment], *, quick: bool = False) -> dict[str, list[Prompt]]:
    """The study's prompts by split. Raises PromptError where a text stands in two splits: what is chosen on one is reported on the other."""
    sources = study.prompts.sources()
    if "file" in sources:
        found = split_prompts(read_prompts(sources["file"]), study.seed)
    else:
        found = {split: read_prompts(sources[split]) for split in SPLITS if split in sources}
    most = {str(split): n for split, n in (study.prompts.at_most or {}).items()}
    found = {split: prompts[: most.get(split)] for split, prompts in found.items()}
    split_of: dict[str, str] = {}
    for split, prompts in found.items():
        for prompt in prompts:
            if split_of.setdefault(prompt.whole, split) != split:
                raise PromptError(
                    f"the text of prompt {prompt.id!r} stands in both {split_of[prompt.whole]} and {split}: what is chosen on one split would be "
                    "reported on the same prompt. Take it out of one of them."
                )
    for one in brought(study, experiments):  # last: a study's own splits come first
        prompts = [prompt for prompt in read_prompts(one.file) if not (one.unread and prompt.whole in split_of)]
        n = QUICK if quick and one.spread else one.n
        found[one.split] = list(evenly_spaced(n or len(prompts), prompts)) if one.spread else prompts[:n]
    return {split: prompts[:QUICK] if quick else prompts for split, prompts in found.items()}


def brought(study: StudyConfig, experiments: Mapping[str, Experiment]) -> list[PromptSet]:
    """The prompts that measures bring beside the study's own. A split that several bring is that of the first: the others read what is there."""
    found: dict[str, PromptSet] = {}
    for experiment, options in asked(study, experiments):
        for one in experiment.prompts(options):
            found.setdefault(one.split, one)
    return list(found.values())


def told(prompt: Prompt) -> dict[str, Any]:
    """What the plan sees of what comes with a prompt."""
    kind = prompt.meta.get("kind")
    hashed = cell_hash({"label": prompt.label, "options": prompt.options, "meta": prompt.meta, "text": prompt.text})
    return {
        "kind": None if kind is None else str(kind),
        "told": hashed,
        "options": len(prompt.options),
        "label": prompt.label is not None,
    }
