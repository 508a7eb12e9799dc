"""A prompt set is read and divided into splits. No torch here.

A prompt set is a JSON Lines file, one prompt a line: `text`, and if wanted `id`, `label`, `options` and `meta`; of a conversation also `system` and
`before`, its earlier turns. What is fitted, what is chosen and what is published each have prompts of their own (METHOD B18), and prompts that are
near copies of each other, named by `meta.cluster`, never stand on both sides of a split.
"""

import codecs
import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import regex

from mechdiff.errors import PromptError

SPLITS = ("fit", "select", "report")
"""`fit` for maps and subspaces, `select` for every choice, `report` for every published number."""

LONGEST_FIELD = 60
"""Letters of a field of `meta` that may be a category."""
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
KEYS = ("text", "id", "label", "options", "meta", "system", "before")
"""Of a line of a prompt file."""
_FOREIGN = (
    "messages", "conversations", "conversation", "question", "questions", "prompt", "instruction", "input", "output", "problem", "query", "answer",
    "choices", "response", "completion", "chosen", "rejected", "solution", "target",
)  # fmt: skip
"""Keys by which other tools' files are known."""
_EXAMPLE = '{"text": "What is 2+2?", "id": "sum-1", "label": "4", "meta": {"cluster": "sums"}}'
_CHOICE = '{"text": "What is 2+2?", "options": ["3", "4"], "label": "4"}'


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a set."""

    id: str
    """Unique within the set; the line's number (`line-7`) where the file gives none."""
    text: str
    label: str | None = None
    """The right answer, where there is one."""
    options: tuple[str, ...] = ()
    """Answers to choose from, in a multiple choice: different texts, one of them the label."""
    meta: dict[str, Any] = field(default_factory=dict, hash=False)
    """Anything else; prompts with the same `cluster` stay in one split."""
    system: str | None = None
    """A system message of its own, in the place of the study's."""
    before: tuple[Turn, ...] = ()
    """Turns of user and assistant before the text."""

    @property
    def whole(self) -> str:
        """What makes two prompts the same: the text, and what was said before it."""
        earlier = [*([] if self.system is None else [f"system\0{self.system}"]), *(f"{turn.role}\0{turn.text}" for turn in self.before)]
        return "\0".join([*earlier, self.text])


def fields_of(prompt: Prompt) -> dict[str, str]:
    """What a user said of a prompt in a few words: the fields of its `meta` that are texts of at most LONGEST_FIELD letters, without `cluster`."""
    told = {name: value.strip() for name, value in prompt.meta.items() if name != "cluster" and isinstance(value, str)}
    return {name: value for name, value in told.items() if 0 < len(value) <= LONGEST_FIELD}


def read_prompts(path: Path | str) -> list[Prompt]:
    """The prompts of a JSON Lines file: `text`, and if wanted `id`, `label`, `options`, `meta`, `system` and `before`. Blank lines are skipped."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}). Give a JSON Lines file, one prompt a line: {_EXAMPLE}") from error
    lines: dict[str, int] = {}
    prompts = []
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        prompt = read_line(line, number, f"{path}, line {number}")
        if prompt.id in lines:
            raise PromptError(
                f"{path}: lines {lines[prompt.id]} and {number} have the same id {prompt.id!r}. Give each prompt an id of its own, "
                "or leave the ids out."
            )
        lines[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{path} holds no prompts. Write one JSON object a line: {_EXAMPLE}")
    return prompts


def read_line(line: bytes, number: int, place: str) -> Prompt:
    """One line of a prompt file, checked; `place` opens every message."""
    try:
        record = json.loads(line.decode("utf-8"))
        json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{place}: not UTF-8 (at byte {error.start + 1} of the line). Save the file as UTF-8.") from error
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{place}: half of a surrogate pair (a \\ud800-\\udfff escape without its partner). Write the character."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("line 1 column", "column")
        if "JSON compliant" in reason:
            raise PromptError(
                f"{place}: NaN or an infinite number, which is no JSON. Write null where there is no value, and a text for any other."
            ) from error
        raise PromptError(f"{place}: malformed JSON ({reason}). Write one JSON object a line: {_EXAMPLE}") from error
    if not isinstance(record, dict):
        raise PromptError(f"{place}: a JSON {type(record).__name__}, not an object. Write one object a line: {_EXAMPLE}")
    _refuse_keys(record, place)
    given = {key: value for key, value in record.items() if value is not None}
    text, name, label, options, meta, system, before = (given.get(key) for key in KEYS)
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{place}: `text` is {text!r}; it must be a string that is not empty. {_EXAMPLE}")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int) or name == ""):
        raise PromptError(
            f"{place}: `id` is {name!r}; it must be a string that is not empty, or a whole number. Leave it out to get line-{number}."
        )
    if label is not None and not isinstance(label, str):
        raise PromptError(f"{place}: `label` is {label!r}; it must be a string. Put it in quotes.")
    if meta is not None and not isinstance(meta, dict):
        raise PromptError(f"{place}: `meta` is {meta!r}; it must be an object. {_EXAMPLE}")
    if options is not None:
        _check_options(options, label, place)
    if system is not None and not isinstance(system, str):
        raise PromptError(f"{place}: `system` is {system!r}; it must be a string.")
    return Prompt(
        id=f"line-{number}" if name is None else str(name),
        text=text,
        label=label,
        options=tuple(options or ()),
        meta=meta or {},
        system=system,
        before=_earlier(before, place),
    )


def _refuse_keys(record: dict[str, Any], place: str) -> None:
    """Raises PromptError for keys that no prompt has; a file of another tool is told by its own."""
    unknown = sorted(record.keys() - set(KEYS))
    if not unknown:
        return
    foreign = [key for key in unknown if key in _FOREIGN]
    if foreign and not isinstance(record.get("text"), str):
        raise PromptError(
            f"{place}: the keys are {', '.join(sorted(record))}, as in a file of another tool; a prompt's text is its `text`. "
            f"`mechdiff curate {place.rpartition(', line')[0] or 'FILE'} --out prompts` makes prompts of it: give the files that it writes."
        )
    near = difflib.get_close_matches(unknown[0], KEYS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Put what else belongs to a prompt into meta."
    raise PromptError(f"{place}: unknown key {unknown[0]!r}; known keys: {', '.join(KEYS)}. {hint}")


def _earlier(before: object, place: str) -> tuple[Turn, ...]:
    """Earlier turns, checked."""
    if before is None:
        return ()
    turns: list[Any] = before if isinstance(before, list) else [before]
    for turn in turns:
        if not (isinstance(turn, dict) and set(turn) == {"role", "content"} and turn["role"] in ("user", "assistant")
                and isinstance(turn["content"], str) and turn["content"].strip()):  # fmt: skip
            raise PromptError(
                f"{place}: `before` holds {turn!r}; each earlier turn must be "
                '{"role": "user" or "assistant", "content": "a text"}, and the last user\'s turn is the `text`.'
            )
    return tuple(Turn(turn["role"], turn["content"]) for turn in turns)


def _check_options(options: object, label: str | None, place: str) -> None:
    """Raises PromptError unless these are the answers of a multiple choice, the right one among them."""
    texts = isinstance(options, list) and all(isinstance(option, str) and option.strip() for option in options)
    if not texts or len(set(options)) < max(2, len(options)):  # type: ignore[arg-type, call-overload]
        raise PromptError(f"{place}: `options` is {options!r}; it must be a list of at least two different texts: {_CHOICE}")
    if label not in options:  # type: ignore[operator]
        raise PromptError(f"{place}: `label` is {label!r}, which is none of its `options`. Give the right option's text: {_CHOICE}")


def split_prompts(prompts: Sequence[Prompt], seed: int) -> dict[str, list[Prompt]]:
    """The prompts in three splits, 60/20/20 % of the clusters, each in the order given.

    A cluster is what must not be spread over splits: prompts with the same `meta["cluster"]`, and prompts with the same text.
    Clusters are put in the order of a hash of seed and content, so that neither the file's order nor the ids matter. Fewer clusters than splits are
    all reported: what is fitted or chosen on other prompts is then left out of the study, each with the reason.
    """
    clusters = clusters_of(prompts)
    ranked = sorted(set(clusters), key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    if len(ranked) < len(SPLITS):
        return {"report": list(prompts)} if prompts else {}
    held_out = round(len(ranked) / 5)
    split = (
        dict.fromkeys(ranked, "fit")
        | dict.fromkeys(ranked[-held_out:], "report")
        | dict.fromkeys(ranked[-2 * held_out : -held_out], "select")
    )
    return {name: [prompt for prompt, cluster in zip(prompts, clusters, strict=True) if split[cluster] == name] for name in SPLITS}


def n_words(text: str) -> int:
    """Words of a text in any script: runs of letters, marks and digits."""
    return sum(1 for _ in _WORD.finditer(text))


def cluster_names(prompts: Sequence[Prompt]) -> list[str]:
    """The cluster of each prompt as a record calls it: by a `meta.cluster` of its prompts, else by the id of the first of them."""
    names: dict[str, str] = {}
    clusters = clusters_of(prompts)
    for given in (True, False):
        for prompt, cluster in zip(prompts, clusters, strict=True):
            named = prompt.meta.get("cluster")
            if cluster in names or (given and named is None):
                continue
            name = str(named) if given else prompt.id
            while name in names.values():
                name += "'"
            names[cluster] = name
    return [names[cluster] for cluster in clusters]


def clusters_of(prompts: Sequence[Prompt]) -> list[str]:
    """The cluster of each prompt, named by the first in order of the texts and cluster names that it joins."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for prompt in prompts:
        named = "cluster " + str(prompt.meta["cluster"]) if prompt.meta.get("cluster") is not None else "text " + prompt.whole
        first, second = sorted((root("text " + prompt.whole), root(named)))
        parent[second] = first
    return [root("text " + prompt.whole) for prompt in prompts]
