"""A prompt set is made from sources: they are read, fields mapped, prompts filtered, copies taken out, the rest split.

Whatever is dropped is counted, by the step that dropped it.

The steps, in this order; a prompt that a step drops comes to no later one:

    fields       a row without a text (or without options or answer, where the preset needs them)
    category     include and exclude patterns on the category
    text         include and exclude patterns on the text, and its length in characters
    copies       equal but for case, white space and the form of letters
    near copies  alike in at least `near` of their pieces (copies.py)
    tokens       too few or too many tokens for either model
    shared       too small a share of tokens that both vocabularies have (fairness.py: this selects on the treatment)

Sources take turns, row by row, and reading stops when `n` prompts are kept, so a source that is sorted gives its beginning: `shuffle` reads all of it
and takes rows in the order of a hash. Prompts that are related stay in one cluster, and splits part clusters by a hash with the seed: the same
sources and recipe give the same bytes.
"""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import regex

from mechdiff.curate.copies import RELATED, Copies
from mechdiff.curate.fairness import Cut, Fairness, Tokenizers
from mechdiff.curate.fields import Candidate, Fields, candidate, not_used, told_of
from mechdiff.curate.raw import Row, Source, open_source
from mechdiff.errors import PromptError
from mechdiff.prompts.sets import SPLITS, Prompt, read_prompts, split_prompts

SHIPPED = Path(__file__).parent.parent / "data"
FALLBACK = ("neutral.jsonl", "prompts/kazakh_fit.jsonl", "prompts/kazakh_select.jsonl", "prompts/kazakh_report.jsonl")
"""Everyday questions in English and questions about Kazakh culture in Kazakh, which ship: what is curated where no source is given."""

STEPS = ("fields", "category", "text", "copies", "near copies", "tokens", "shared")

Progress = Callable[[int, int], None]
"""Called with rows read and prompts kept."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a set is made. Raises PromptError for what cannot be."""

    fields: Fields = field(default_factory=Fields)
    n: int | None = None
    """Prompts to keep; None: all."""
    include_category: tuple[str, ...] = ()
    """Regular expressions, any of which must be found (Unicode, blind to case); none: all."""
    exclude_category: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    """The same on the text."""
    exclude: tuple[str, ...] = ()
    characters: tuple[int | None, int | None] = (None, None)
    """Least and most."""
    tokens: tuple[int | None, int | None] = (None, None)
    """Least and most, in both tokenizers."""
    near: float = 0.8
    """Similarity from which a prompt is a near copy; 1: only copies are removed."""
    min_shared: float | None = None
    """Least share of tokens that both vocabularies have, in each tokenizer."""
    shuffle: bool = False
    seed: int = 0
    language: str | None = None
    """Noted as `meta.language` of every prompt."""
    paragraphs: bool = False
    keep_fields: bool = False
    """Fields of a row that no prompt is made of go to its `meta`."""

    def __post_init__(self) -> None:
        for name, given, least, most in (("n", self.n, 1, None), ("near", self.near, RELATED, 1), ("min_shared", self.min_shared, 0, 1)):
            if given is not None and not (given >= least and (most is None or given <= most)):
                raise PromptError(
                    f"{name}: given {given}, expected at least {least}" + (f" and at most {most}." if most is not None else ".")
                )
        for name, (least_length, most_length) in (("characters", self.characters), ("tokens", self.tokens)):
            if least_length is not None and most_length is not None and least_length > most_length:
                raise PromptError(f"{name}: given at least {least_length} and at most {most_length}: no prompt is both.")
        for name in ("include_category", "exclude_category", "include", "exclude"):
            for pattern in getattr(self, name):
                _compiled(name, pattern)


@dataclass(kw_only=True)
class Curation:
    """A set that was made, and how."""

    prompts: list[Prompt]
    splits: dict[str, list[Prompt]]
    record: dict[str, Any] = field(default_factory=dict)


def curate(
    sources: Sequence[str | Source], recipe: Recipe, *, tokenizers: Tokenizers | None = None, progress: Progress = lambda read, kept: None
) -> Curation:
    """The prompt set of some sources (none: the one that ships). PromptError: a source that cannot be read, a recipe that keeps nothing."""
    if (recipe.min_shared is not None or recipe.tokens != (None, None)) and tokenizers is None:
        raise PromptError("limits in tokens and in shared tokens need both tokenizers. Give --base and --tuned.")
    shipped = not sources
    named = sources or [str(SHIPPED / name) for name in FALLBACK]
    opened = [one if isinstance(one, Source) else open_source(one, paragraphs=recipe.paragraphs) for one in named]
    work = _Work(recipe, tokenizers)
    read = dict.fromkeys(range(len(opened)), 0)
    for which, number, row in _turns(opened, recipe):
        read[which] += 1
        work.look(row, f"{opened[which].name}, row {number}", opened[which].name)
        progress(sum(read.values()), len(work.kept))
        if recipe.n is not None and len(work.kept) >= recipe.n:
            break
    work.refuse_empty(sum(read.values()))
    prompts = work.prompts()
    splits = split_prompts(prompts, recipe.seed)
    listed = [{"name": one.name, "kind": one.kind, "sha256": one.sha256, "rows_read": read[i]} for i, one in enumerate(opened)]
    record = {
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "sources": listed,
        "shipped_set": shipped,
        "rows_read": sum(read.values()),
        "stopped_early": recipe.n is not None and len(work.kept) >= recipe.n,
        "steps": work.steps(),
        "kept": len(prompts),
        "kept_fields": sorted(work.beside),
        "clusters": len({str(one.meta.get("cluster", one.id)) for one in prompts}),
        "splits": {name: len(part) for name, part in splits.items()},
        "fairness": work.fairness.record(tokenizers.tokens, recipe.min_shared) if tokenizers else {},
        "versions": {name: version(name) for name in ("mechdiff", "datasketch", "regex")},
    }
    return Curation(prompts=prompts, splits=splits, record=record)


def _turns(opened: Sequence[Source], recipe: Recipe) -> Iterator[tuple[int, int, Row]]:
    """(source, row number, row): sources take turns, each in its own order or in the order of a hash of the rows."""

    def ordered(source: Source) -> Iterator[tuple[int, Row]]:
        numbered = enumerate(source.rows(), start=1)
        if not recipe.shuffle:
            return numbered

        def rank(one: tuple[int, Row]) -> bytes:
            return hashlib.sha256(f"{recipe.seed}\0{json.dumps(one[1], sort_keys=True, default=str)}".encode()).digest()

        return iter(sorted(numbered, key=rank))

    waiting = {i: ordered(source) for i, source in enumerate(opened)}
    while waiting:
        for i in list(waiting):
            try:
                number, row = next(waiting[i])
            except StopIteration:
                del waiting[i]
                continue
            yield i, number, row


class _Work:
    """One pass over the rows."""

    def __init__(self, recipe: Recipe, tokenizers: Tokenizers | None) -> None:
        self.recipe, self.tokenizers = recipe, tokenizers
        self.patterns = {
            name: [_compiled(name, pattern) for pattern in getattr(recipe, name)]
            for name in ("include_category", "exclude_category", "include", "exclude")
        }
        self.copies = Copies(threshold=recipe.near, seed=recipe.seed)
        self.fairness = Fairness()
        self.dropped: dict[str, dict[str, Any]] = {step: {"dropped": 0, "reasons": {}} for step in STEPS}
        self.kept: dict[str, tuple[Candidate, dict[str, Any]]] = {}
        self.columns: set[str] = set()
        self.beside: set[str] = set()
        self.clusters: dict[str, str] = {}

    def look(self, row: Row, place: str, source: str) -> None:
        """Keeps a row's prompt, or counts why not."""
        self.columns |= {str(name) for name in row}
        found = candidate(row, self.recipe.fields, place)
        if not isinstance(found, str) and not _writable(found):
            raise PromptError(f"{place}: half of a surrogate pair (a \\ud800-\\udfff escape without its partner). Write the character.")
        if isinstance(found, str):
            return self._drop("fields", found, place)
        for step, reason in self._plain_faults(found):
            return self._drop(step, reason, place)
        whole = found.whole
        if self.copies.same(whole):
            return self._drop("copies", "the same text", place)
        near = list(self.copies.near(whole))
        if any(similarity >= self.recipe.near for _, similarity in near):
            return self._drop("near copies", f"alike in at least {self.recipe.near:g}", place)
        cut = self.tokenizers.cut(found.text) if self.tokenizers else None
        if cut:
            if fault := _length_fault(cut.tokens.values(), self.recipe.tokens, "tokens"):
                return self._drop("tokens", fault, place)
            fair = self.recipe.min_shared is None or min(cut.shared.values()) >= self.recipe.min_shared
            self.fairness.note(fair, found.text, found.category, cut)
            if not fair:
                return self._drop("shared", f"under {self.recipe.min_shared:g} of shared tokens", place)
        related = [name for name, _ in near] + [name for name in (self.copies.asked(found.question),) if name]
        self._keep(found, row, place, source, related, cut)

    def _plain_faults(self, found: Candidate) -> Iterator[tuple[str, str]]:
        for step, text in (
            ("category", unicodedata.normalize("NFC", found.category or "")),
            ("text", unicodedata.normalize("NFC", found.text)),
        ):
            suffix = "_category" if step == "category" else ""
            wanted, unwanted = self.patterns[f"include{suffix}"], self.patterns[f"exclude{suffix}"]
            if wanted and not any(pattern.search(text) for pattern in wanted):
                yield step, "no include pattern is found"
            for pattern in unwanted:
                if pattern.search(text):
                    yield step, f"exclude pattern {pattern.pattern!r} is found"
        if fault := _length_fault([len(found.text)], self.recipe.characters, "characters"):
            yield "text", fault

    def _drop(self, step: str, reason: str, place: str) -> None:
        entry = self.dropped[step]
        entry["dropped"] += 1
        entry["reasons"][reason] = entry["reasons"].get(reason, 0) + 1
        entry.setdefault("first", place)

    def _keep(self, found: Candidate, row: Row, place: str, source: str, related: list[str], cut: Cut | None) -> None:
        digest = hashlib.sha256(json.dumps([found.question, found.options]).encode()).hexdigest()[:12]
        name = found.id if found.id and found.id not in self.kept else f"{found.id}-{digest}" if found.id else digest
        beside = not_used(row) if self.recipe.keep_fields else {}
        self.beside |= beside.keys()
        told = beside | told_of(row.get("meta"))
        if told.get("cluster") is not None:
            first = self.clusters.setdefault(f"{source}\0{told['cluster']}", name)
            related = related + ([first] if first != name else [])
        self.copies.keep(name, found.whole, related, question=found.question)
        meta: dict[str, Any] = {key: value for key, value in told.items() if key != "cluster"}
        meta |= {"source": source, "row": int(place.rpartition(" ")[2])}
        language = self.recipe.language or told.get("language")
        meta |= {key: value for key, value in (("category", found.category), ("language", language)) if value}
        if cut:
            meta |= {f"tokens_{side}": n for side, n in cut.tokens.items()} | {
                f"shared_{side}": round(x, 4) for side, x in cut.shared.items()
            }
        self.kept[name] = (found, meta)

    def prompts(self) -> list[Prompt]:
        """What was kept, related prompts under the name of their cluster."""
        cluster = {name: self.copies.cluster(name) for name in self.kept}
        sizes = Counter(cluster.values())
        return [
            Prompt(
                id=name, text=found.text, label=found.label, options=found.options, system=found.system, before=found.before,
                meta=meta | ({"cluster": cluster[name]} if sizes[cluster[name]] > 1 else {}),
            )
            for name, (found, meta) in self.kept.items()
        ]  # fmt: skip

    def steps(self) -> list[dict[str, Any]]:
        """Of each step how many came, how many it dropped and why."""
        left, found = sum(entry["dropped"] for entry in self.dropped.values()) + len(self.kept), []
        for step, entry in self.dropped.items():
            found.append({"step": step, "came": left, **entry})
            left -= entry["dropped"]
        return found

    def refuse_empty(self, read: int) -> None:
        if self.kept:
            return
        if not read:
            raise PromptError("the sources hold no rows.")
        if self.dropped["fields"]["dropped"] == read:
            why = ", ".join(f"{reason}: {n}" for reason, n in self.dropped["fields"]["reasons"].items())
            raise PromptError(
                f"none of {read} rows gives a prompt ({why}). The columns are: {', '.join(sorted(self.columns))}. "
                "Say which one is which: --text, --options, --answer, --category."
            )
        told = "; ".join(
            f"{step}: {entry['dropped']} ({', '.join(entry['reasons'])})" for step, entry in self.dropped.items() if entry["dropped"]
        )
        raise PromptError(f"all of {read} rows are dropped: {told}. Loosen one of these.")


def _writable(found: Candidate) -> bool:
    try:
        json.dumps([found.whole, found.label, found.id, found.category], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _length_fault(lengths: Any, limits: tuple[int | None, int | None], what: str) -> str | None:
    least, most = limits
    if least is not None and min(lengths) < least:
        return f"fewer than {least} {what}"
    return f"more than {most} {what}" if most is not None and max(lengths) > most else None


def _compiled(name: str, pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(unicodedata.normalize("NFC", pattern), regex.IGNORECASE | regex.FULLCASE | regex.V1)
    except regex.error as error:
        raise PromptError(f"{name}: {pattern!r} is no regular expression ({error}).") from error


# ---- on disk -----------------------------------------------------------------------------------------------------------------------


def write(made: Curation, out: Path, *, one_file: bool = False, overwrite: bool = False) -> list[Path]:
    """Writes the prompts (a file a split, or all in one) and curation.json; returns their paths. Refuses a folder with another set."""
    parts = {"prompts": made.prompts} if one_file else made.splits
    files = {f"{name}.jsonl": "".join(_line(one) for one in prompts).encode() for name, prompts in parts.items()}
    record = made.record | {"outputs": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    text = json.dumps(record, ensure_ascii=False, indent=2).encode() + b"\n"
    if out.exists() and not out.is_dir():
        raise PromptError(f"{out}: given a file, expected a folder for the prompt set.")
    there = {path.name: path.read_bytes() for path in out.glob("*") if path.name in {*files, "curation.json"}} if out.is_dir() else {}
    if not overwrite and any(there[name] != content for name, content in {**files, "curation.json": text}.items() if name in there):
        raise PromptError(f"{out}: holds another prompt set. Give another folder, or --overwrite.")
    out.mkdir(parents=True, exist_ok=True)
    for old in {*(f"{split}.jsonl" for split in SPLITS), "prompts.jsonl"} - set(files) if overwrite else ():
        (out / old).unlink(missing_ok=True)  # of the set that is replaced
    for name, content in {**files, "curation.json": text}.items():
        temporary = out / f".{name}"
        temporary.write_bytes(content)
        os.replace(temporary, out / name)
    for name in files:
        read_prompts(out / name)
    return [*(out / name for name in files), out / "curation.json"]


def _line(one: Prompt) -> str:
    before = [{"role": turn.role, "content": turn.text} for turn in one.before]
    told = {
        "id": one.id, "system": one.system, "before": before or None, "text": one.text, "label": one.label,
        "options": list(one.options) or None, "meta": one.meta,
    }  # fmt: skip
    return json.dumps({name: value for name, value in told.items() if value is not None}, ensure_ascii=False) + "\n"
