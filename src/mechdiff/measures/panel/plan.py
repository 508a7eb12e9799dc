"""A study file may set these options of the panel; its texts are read here, and its cells are planned from them.

The panel is twelve groups of fifty texts and prompts that come with mechdiff (data/panel), and beside them the user's own file. A text is read as it
is; a prompt stands in the study's template, and what follows it is an answer, one of several options, or a refusal.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mechdiff.errors import PromptError
from mechdiff.measures.behaviour.phrases import read_phrases, spaced
from mechdiff.prompts.rendering import Rendered, render
from mechdiff.prompts.sets import Prompt, read_prompts
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.cells import Cell, Item
from mechdiff.study.experiment import Reading
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner

SPLIT = "panel"
DATA = Path(__file__).parents[2] / "data" / "panel"
PER_GROUP = 50
Form = Literal["text", "answer", "choice", "request", "prompt"]
GROUPS: dict[str, Form] = {
    "chat": "answer", "encyclopaedia": "text", "news": "text", "code": "text", "arithmetic": "choice", "multiple_choice": "choice",
    "harmful": "request", "borderline": "request", "kazakh": "text", "russian": "text", "spanish": "text", "turkish": "text",
}  # fmt: skip
"""What is read of each group: whole texts, answers behind a prompt, options behind a prompt, refusals of a request."""
ALSO = "also"
"""The group of the user's own file."""
PASS_TOKENS = 1024
"""Tokens of one cell: what both models say of each of them is in memory together."""
OPENINGS = 3
"""Refusals, and as many plain openings, that are scored behind a request."""
LANGUAGE = "en"
"""Of the shipped requests."""


class PanelOptions(Options):
    paths: ClassVar = {"also": ""}
    presets: ClassVar = {"quick": {"per_group": 2}, "standard": {"per_group": 4}, "paper": {"per_group": 50}, "audit": {"per_group": 50}}

    per_group: Annotated[int, Field(ge=1, le=PER_GROUP)] = 12  # of each group's 50 texts or prompts, the first ones
    also: str | None = None  # a file of the user's own prompts that must not change: a label is the answer, options are scored


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One text or prompt of the panel."""

    group: str
    form: Form
    prompt: Prompt
    answer: str | None = None


@cache
def shipped(group: str) -> tuple[Entry, ...]:
    """All of a group, in its order."""
    lines = (json.loads(line) for line in (DATA / f"{group}.jsonl").read_text(encoding="utf-8").splitlines())
    return tuple(_entry(group, line) for line in lines)


def _entry(group: str, line: dict) -> Entry:
    options = tuple(line.get("choices", ()))
    label = options[line["right"]] if options else None
    prompt = Prompt(id=line["id"], text=line.get("text") or line["prompt"], options=options, label=label, meta={"kind": group})
    return Entry(group=group, form=GROUPS[group], prompt=prompt, answer=line.get("answer"))


def entries(options: PanelOptions) -> list[Entry]:
    """What is read: the first of each group, then the user's own. Raises PromptError for a file that cannot be read."""
    found = [one for group in GROUPS for one in shipped(group)[: options.per_group]]
    return found + [_own(prompt) for prompt in (read_prompts(options.also) if options.also else [])]


def _own(prompt: Prompt) -> Entry:
    """A prompt of the user's own: its options are scored, else its label is read as the answer, else its next token alone."""
    form: Form = "choice" if prompt.options and prompt.label else "answer" if prompt.label else "prompt"
    named = replace(prompt, id=f"{ALSO}/{prompt.id}", meta={**prompt.meta, "kind": ALSO})
    return Entry(group=ALSO, form=form, prompt=named, answer=prompt.label if form == "answer" else None)


# ---- as both models read it -----------------------------------------------------------------------------------------------------------


def read(reading: Reading) -> None:
    """Adds the panel to what both models read: texts as far as a context goes; prompts that are longer are left out, and said."""
    options = reading.study.asked(PanelOptions)
    if not options:
        return
    asked, policy = entries(options), replace(reading.policy, position="decision", answer=None)
    found = _texts(reading, [one for one in asked if one.form == "text"])
    asked = [one for one in asked if one.form != "text" or one.prompt.id in found]
    found |= _rendered(reading, [one for one in asked if one.form != "text"], policy)
    for one in asked:
        if one.answer:
            found[one.prompt.id] = _answered(reading, one, policy, found[one.prompt.id])
    context = {side: shape.context for side, shape in reading.shapes.items()}
    room = {side: {one.prompt.id: _behind(one, tokenizer) for one in asked} for side, tokenizer in reading.tokenizers.items()}
    left = {name: {side: most - room[side][name] for side, most in context.items()} for name in found}
    kept = {one.prompt.id: _within(found[one.prompt.id], left[one.prompt.id]) for one in asked}
    long = [name for name, one in kept.items() if one is None]
    if long:
        reading.left_out.append(
            {"what": f"{len(long)} of {len(found)} prompts of the panel", "why": "they are longer than a model's context"}
        )
    reading.rendered[SPLIT] = {name: one for name, one in kept.items() if one is not None}


def _texts(reading: Reading, asked: list[Entry]) -> dict[str, Rendered]:
    """Whole texts as they are; none, and why, where a tokenizer puts something behind each."""
    try:
        return _rendered(reading, asked, PromptPolicy(policy="raw"))
    except PromptError as error:
        reading.left_out.append({"what": f"{len(asked)} whole texts of the panel", "why": str(error)})
        return {}


@cache
def openings() -> tuple[str, ...]:
    """Refusals, then plain openings, that are scored behind a request."""
    lists = read_phrases(None)[LANGUAGE]
    return (*lists.refusal_openings[:OPENINGS], *lists.neutral_openings[:OPENINGS])


def _behind(entry: Entry, tokenizer: Any) -> int:
    """Tokens of the longest text that is scored behind a prompt."""
    texts = {"choice": entry.prompt.options, "request": openings()}.get(entry.form, ())
    return max((len(tokenizer(f" {text}", verbose=False)["input_ids"]) for text in texts), default=0)


def _within(one: Rendered, context: Mapping[str, int]) -> Rendered | None:
    """A whole text as far as both models' contexts go; a prompt as it is, or None where it is longer than they have room for."""
    if all(len(getattr(one, f"ids_{side}")) <= most for side, most in context.items()):
        return one
    pairs = tuple(pair for pair in one.positions if pair[0] < context["base"] and pair[1] < context["tuned"])
    if one.prompt.meta["form"] != "text" or len(pairs) < 2:
        return None
    base, tuned = pairs[-1]
    return replace(one, ids_base=one.ids_base[: base + 1], ids_tuned=one.ids_tuned[: tuned + 1], positions=pairs)


def _rendered(reading: Reading, asked: list[Entry], policy: PromptPolicy) -> dict[str, Rendered]:
    """Their positions are those that are scored: of a text all, of a prompt the last."""
    prompts = [replace(one.prompt, meta={**one.prompt.meta, "form": one.form}) for one in asked]
    tokenizers = reading.tokenizers
    found = render(prompts, tokenizers["base"], tokenizers["tuned"], policy, max_base=sys.maxsize, max_tuned=sys.maxsize)
    return {
        one.prompt.id: one if one.prompt.meta["form"] in ("text", "answer") else replace(one, positions=one.positions[-1:]) for one in found
    }


def _answered(reading: Reading, entry: Entry, policy: PromptPolicy, alone: Rendered) -> Rendered:
    """The prompt with its answer behind it, scored from the last token that the prompt alone has too.

    Under two templates both models' tokens of the answer are held against one another where they are the same; else its first token alone is.
    """
    answer = spaced(reading.tokenizers["tuned"], alone.text_tuned, alone.ids_tuned, entry.answer or "")
    (one,) = _rendered(reading, [entry], replace(policy, answer=answer)).values()
    base, tuned = (
        next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own))) - 1
        for ids, own in ((one.ids_base, alone.ids_base), (one.ids_tuned, alone.ids_tuned))
    )
    if one.text_base == one.text_tuned:
        pairs = tuple(pair for pair in one.positions if pair[0] >= base and pair[1] >= tuned)
    else:
        same = one.ids_base[base + 1 :] == one.ids_tuned[tuned + 1 :]
        pairs = tuple((base + i, tuned + i) for i in range(len(one.ids_base) - base if same else 1))
    return replace(one, positions=pairs)


# ---- cells ----------------------------------------------------------------------------------------------------------------------------


def cells(planner: Planner) -> Iterator[Cell]:
    """Passes of both models over texts of similar length."""
    options = planner.study.asked(PanelOptions)
    if not options:
        return
    items = sorted(planner.splits.get(SPLIT, ()), key=lambda item: (item.tokens, item.id))
    if not items:
        planner.skip("panel", "every prompt of it is longer than a model's context")
    what = cell_hash({"texts": [[one.group, one.form, one.prompt.id, one.prompt.text, one.answer] for one in entries(options)]})
    for shard in _passes(items):
        tokens = sum(item.tokens + item.options * item.text_tokens for item in shard)
        key = planner.key(shard, stage="panel", split=SPLIT, panel=what, told=[item.told for item in shard])
        yield Cell(stage="panel", key=key, items=tuple(shard), side=None, flops=2 * planner.flops(tokens, tokens))


def _passes(items: list[Item]) -> Iterator[list[Item]]:
    shard: list[Item] = []
    for item in items:
        if shard and (len(shard) + 1) * item.longest > PASS_TOKENS:
            yield shard
            shard = []
        shard.append(item)
    if shard:
        yield shard
