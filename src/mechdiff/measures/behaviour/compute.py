"""Both models answer: greedy and sampled answers, refusals by likelihood, multiple choice. What texts are compared with is made here too."""

import collections
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechdiff import labels
from mechdiff.engine.continued import Continuation, Continued, Likelihoods, likelihoods
from mechdiff.engine.generation import Sampling, Speech, speak, stop_ids
from mechdiff.engine.replay import Engine, Variant
from mechdiff.measures.behaviour.answers import choice, mathematical
from mechdiff.measures.behaviour.formula import language_of, said_values, soft_refusal
from mechdiff.measures.behaviour.phrases import Phrases, read_phrases, spaced
from mechdiff.measures.behaviour.plan import BehaviourOptions, asks_openings
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport.compute import table
from mechdiff.models.pair import Model
from mechdiff.prompts.rendering import Rendered
from mechdiff.prompts.sets import Prompt
from mechdiff.rows import empty
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

Value = dict[str, Any]
"""Some columns of a row, `value` among them."""


def options_of(run: Execution) -> BehaviourOptions:
    options = run.prepared.study.asked(BehaviourOptions)
    assert options
    return options


def published(split: str) -> str | None:
    """The row contract's split: probes are in none."""
    return "report" if split == "report" else None


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The texts that may follow one prompt, in one model's tokens: openings (refusals, then as many neutral ones or so), then options."""

    ids: list[list[int]]
    n_bytes: list[int]
    n_refusals: int
    n_openings: int
    right: int | None
    """The place of the label among the options."""

    def values(self, logps: Sequence[float]) -> dict[str, float]:
        """Metric -> value, from the sums of log p (nats) of all texts."""
        found: dict[str, float] = {}
        n, sizes = self.n_openings, [len(ids) for ids in self.ids]
        if n:
            found |= soft_refusal(logps[:n], sizes[:n], self.n_bytes[:n], self.n_refusals)
        if self.right is not None:
            found |= choice(logps[n:], sizes[n:], self.n_bytes[n:], self.right)
        return found


class Asker:
    """One running model, and what its answers on a cell's prompts are held against."""

    def __init__(self, run: Execution, cell: Cell, model: Model, names: Sequence[str]) -> None:
        self.run, self.cell, self.model, self.names = run, cell, model, list(names)
        self.split, self.settings = cell.key["split"], cell.key["settings"]
        self.tokenizer = run.prepared.pair.tokenizer(model.side)
        self.phrases = read_phrases(options_of(run).patterns)
        self.rendered = [run.prompt(self.split, name) for name in self.names]
        self.ids = [run.ids(cell, name) for name in self.names]

    @property
    def engine(self) -> Engine:
        return self.run.engine(self.model, "decision")

    def speaking(self, sampling: Sampling | None = None) -> Speech:
        """How answers are given."""
        stop = stop_ids(self.model, self.tokenizer, self.run.prepared.tokenizers())
        return Speech(max_tokens=self.settings["max_tokens"], stop=stop, sampling=sampling)

    def text(self, said: Tensor) -> str:
        return str(self.tokenizer.decode(said.tolist(), skip_special_tokens=True))

    def answers(self, sampling: Sampling | None = None) -> list[Tensor]:
        """What the model says to each prompt, up to the first of the study's stop texts."""
        return [self.cut(said) for said in speak(self.model, self.engine, self.ids, self.speaking(sampling))]

    def cut(self, said: Tensor) -> Tensor:
        """The longest beginning of an answer without a stop text."""
        ends = self.settings["stop"]
        if not any(end in self.text(said) for end in ends):
            return said
        return said[: max(n for n in range(len(said)) if not any(end in self.text(said[:n]) for end in ends))]

    def lists(self, one: Rendered) -> Phrases | None:
        return self.phrases.get(language(one, self.phrases) or "")

    def said(self, i: int, answer: Tensor) -> dict[tuple[str, str | None], float]:
        """(metric, style class) -> value of one answer to the prompt `i`; exact match where it has a final answer, style where it has words."""
        prompt = self.rendered[i].prompt
        label = prompt.label if self._final(prompt) else None
        ended = len(answer) < self.settings["max_tokens"]
        lists = self.lists(self.rendered[i])
        values = said_values(self.text(answer), len(answer), lists, self.phrases.values(), label, ended=ended)
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _final(self, prompt: Prompt) -> bool:
        """Whether the prompt's label is a final answer: a number or formula, or whatever it is where the study says so."""
        if prompt.options or prompt.label is None:
            return False
        return mathematical(prompt.label) if self.settings["exact_match"] == "auto" else self.settings["exact_match"]

    def texts(self) -> list[Scored]:
        """What may follow each prompt."""
        found = []
        for one, ids in zip(self.rendered, self.ids, strict=True):
            prompt, lists, n = one.prompt, self.lists(one), self.settings["openings"]
            asks = asks_openings(self.split, bool(prompt.options), prompt.label is not None)
            refusals, neutral = (lists.refusal_openings[:n], lists.neutral_openings[:n]) if asks and lists else ((), ())
            every = [*refusals, *neutral, *prompt.options]
            found.append(
                Scored(
                    ids=[self._continued(one, ids, text) for text in every],
                    n_bytes=[len(text.encode()) for text in every],
                    n_refusals=len(refusals),
                    n_openings=len(refusals) + len(neutral),
                    right=prompt.options.index(prompt.label) if prompt.options and prompt.label is not None else None,
                )
            )
        return found

    def _continued(self, one: Rendered, ids: Sequence[int], text: str) -> list[int]:
        before = one.text_base if self.model.side == "base" else one.text_tuned
        return continued(self.tokenizer, before, ids, text, raw=self.run.prepared.study.prompts.policy == "raw")

    def likelihoods(self, texts: Sequence[Scored], variants: Sequence[Variant] = (), kept: Tensor | None = None) -> Likelihoods:
        said = [Continuation(prompt=i, ids=ids) for i, one in enumerate(texts) for ids in one.ids]
        asked = Continued(prompts=self.ids, continuations=said)
        return likelihoods(self.model, self.engine, asked, variants, max_rows=self.run.max_rows, kept=kept)


def continued(tokenizer: Any, before: str, ids: Sequence[int], text: str, *, raw: bool) -> list[int]:
    """The tokens of a text behind a prompt (`before`, whose tokens are `ids`): as the tokenizer cuts both together, where that leaves the prompt's
    tokens as they are.

    Where it does not (a word of the text has merged with the prompt's end), the text is cut alone: the model has read the prompt's own tokens. `raw`:
    whether the prompt was cut with the tokenizer's special tokens.
    """
    said = spaced(tokenizer, before, ids, text)
    together = tokenizer(before + said, add_special_tokens=raw, verbose=False)["input_ids"]
    if len(together) > len(ids) and together[: len(ids)] == list(ids):
        return list(together[len(ids) :])
    return list(tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"])


def language(one: Rendered, phrases: Mapping[str, Phrases]) -> str | None:
    return language_of(one.prompt.text, one.prompt.meta, phrases)


def by_prompt(texts: Sequence[Scored], values: Tensor) -> list[list[float]]:
    """The numbers of each prompt's texts, from those of all `[text]`."""
    return [part.tolist() for part in values.split([len(one.ids) for one in texts])] if texts else []


# ---- the stage ---------------------------------------------------------------------------------------------------------------------


def behave(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of what one model says and would say to a shard's prompts; tensors: its greedy answers."""
    assert model
    asker = Asker(run, cell, model, cell.key["ids"])
    answers = asker.answers()
    values: list[Value] = []
    for i, (name, answer) in enumerate(zip(asker.names, answers, strict=True)):
        for (metric, style), value in asker.said(i, answer).items():
            values.append({"prompt": name, "metric": metric, "unit": labels.answer_unit(model.side, style), "value": value})
    values += _drawn(asker)
    values += _scored(asker)
    frame = table(values, measure="behaviour", split=published(cell.key["split"])) if values else empty()
    return frame, {"said": as_bytes({name: asker.text(answer) for name, answer in zip(asker.names, answers, strict=True)})}


def _drawn(asker: Asker) -> list[Value]:
    """Means over drawn answers: of refusals and right answers rates."""
    settings, sums = asker.settings, [dict[str, list[float]]() for _ in asker.names]
    for draw in range(settings["samples"]):
        seed = asker.cell.key["seed"] * 1009 + draw
        sampling = Sampling(temperature=settings["temperature"], top_p=settings["top_p"], seed=seed)
        for i, answer in enumerate(asker.answers(sampling)):
            for (metric, style), value in asker.said(i, answer).items():
                if style is None:
                    sums[i].setdefault(metric, []).append(value)
    unit = labels.answer_unit(asker.model.side, labels.SAMPLED)
    return [
        {"prompt": name, "metric": metric, "unit": unit, "value": sum(each) / len(each)}
        for name, found in zip(asker.names, sums, strict=True)
        for metric, each in found.items()
    ]


def _scored(asker: Asker) -> list[Value]:
    """Soft refusals and choices, also of laws cut to the tokens that both models have."""
    texts, tokens, side = asker.texts(), asker.run.prepared.tokens, asker.model.side
    masked = tokens.n_shared < len(tokens) if asker.settings["masked"] == "auto" else asker.settings["masked"]
    kept = torch.tensor(sorted(tokens.shared_ids(side))) if masked else None
    found = asker.likelihoods(texts, kept=kept)
    values = [
        {"prompt": name, "metric": metric, "unit": side, "value": value}
        for name, one, logps in zip(asker.names, texts, by_prompt(texts, found.logps[:, 0]), strict=True)
        for metric, value in one.values(logps).items()
    ]
    if found.kept_logps is None or found.coverage is None:
        return values
    cut = zip(asker.names, texts, by_prompt(texts, found.kept_logps[:, 0]), by_prompt(texts, found.coverage[:, 0]), strict=True)
    for name, one, logps, coverage in cut:
        inside = {metric: value for metric, value in one.values(logps).items() if math.isfinite(value)}
        inside |= {"mask_coverage": sum(coverage) / len(coverage)} if coverage else {}
        values += [
            {"prompt": name, "metric": metric, "unit": labels.answer_unit(side, labels.SHARED_TOKENS), "value": value}
            for metric, value in inside.items()
        ]
    return values


# ---- for the record ----------------------------------------------------------------------------------------------------------------

NO_LISTS = "other"
"""What languages without lists are called."""
TEXTS = 500
"""Prompts whose answers the record keeps, at most; those that were answered under edits come first."""


def behaviour_record(run: Execution) -> dict[str, Any]:
    """For the record: `behaviour` (what was asked of how many, and the answers side by side)."""
    cells = [cell for cell in run.cells if cell.stage == "behaviour"]
    if not cells:
        return {}
    options, edits = options_of(run), [cell for cell in run.cells if cell.stage == "behaviour_edits"]
    phrases = read_phrases(options.patterns)
    prompts = {(split, name): one for split in ("report", "probes") for name, one in run.prepared.rendered.get(split, {}).items()}
    tongues = collections.Counter(language(one, phrases) or NO_LISTS for one in prompts.values())
    scored = {(cell.key["split"], name): name in cell.key["spoken"] for cell in edits for name in cell.key["ids"]}
    probes = run.prepared.rendered.get("probes", {})
    file = options.probes if isinstance(options.probes, str) else "those that come with mechdiff"
    texts = _texts(run, cells, edits, prompts, phrases)
    groups: dict[str, dict[str, list[str]]] = {}
    for (split, name), one in prompts.items():
        group = "report" if split == "report" else str(one.prompt.meta.get("kind") or "probes")
        groups.setdefault(group, {}).setdefault(language(one, phrases) or NO_LISTS, []).append(name)
    return {
        "behaviour": {
            "languages": dict(tongues.most_common()),
            "guessed": sum("language" not in one.prompt.meta for one in prompts.values()),
            "groups": groups,
            "probes": {"file": file, "n": len(probes)} if probes else None,
            "max_tokens": options.max_tokens,
            **({"edited_tokens": options.edited_tokens} if options.edited_tokens is not None else {}),
            "samples": options.samples,
            "openings": options.openings,
            "layers": sorted({layer for cell in edits for layer in (*cell.key["layers"], *closer_layers(run, options))}),
            "closer_layers": closer_layers(run, options) if edits else [],
            "n_scored": len(scored),
            "n_spoken": sum(scored.values()),
            "texts": texts[:TEXTS],
            "texts_left_out": max(0, len(texts) - TEXTS),
        }
    }


def _texts(
    run: Execution,
    cells: Sequence[Cell],
    edits: Sequence[Cell],
    prompts: Mapping[tuple[str, str], Rendered],
    phrases: Mapping[str, Phrases],
) -> list[dict[str, Any]]:
    """Every prompt with both models' answers, and those under edits; prompts that have some first."""

    def told(cell: Cell) -> Any:
        return json.loads(bytes(run.folder.load(cell.key).tensors["said"]).decode())

    said: dict[str, dict[tuple[str, str], str]] = {"base": {}, "tuned": {}}
    for cell in cells:
        said[cell.key["side"]] |= {(cell.key["split"], name): text for name, text in told(cell).items()}
    patched: dict[tuple[str, str], list[Any]] = {}
    for cell in edits:
        for one in told(cell):
            patched.setdefault((cell.key["split"], one.pop("prompt")), []).append(one)
    found = [
        {
            "prompt": name, "split": published(split), "text": one.prompt.text, "label": one.prompt.label, "kind": one.prompt.meta.get("kind"),
            "language": language(one, phrases), "base": said["base"][split, name], "tuned": said["tuned"][split, name],
            "patched": patched.get((split, name), []),
        }
        for (split, name), one in prompts.items()
    ]  # fmt: skip
    return sorted(found, key=lambda one: not one["patched"])
