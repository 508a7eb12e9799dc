"""Lines of evidence are made of what two voices were heard to say: the pair's own, and by the very same steps those of null pairs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.reading import cleans
from mechdiff.engine.replay import replay
from mechdiff.measures.words import formula, lens, texts
from mechdiff.measures.words.amplify import amplified_of
from mechdiff.measures.words.formula import LEAST, Line, Reading, halves
from mechdiff.measures.words.judge import LEVEL
from mechdiff.measures.words.listen import Seed, heard, said_by, seeds_of, texts_of
from mechdiff.measures.words.plan import AGAIN, BASE, EDIT, FEATURE, GAP, LENS, PHRASES, REPLAY, TOKEN, TUNED, read_passages
from mechdiff.measures.words.record import gaps
from mechdiff.models.pair import SIDES, Model, Side
from mechdiff.rows import empty, rows
from mechdiff.store.disk import as_bytes
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result

KEEP = {"tokens": 8, "lens": 4}
"""Lines that each reader of tokens names at each place, either way."""
METRICS = {"tokens": TOKEN, "lens": LENS, "continuations": FEATURE}
SCOPED = 2
"""Random vectors that a patchscope reads beside each difference."""
REPLAYED_ON = 8
"""Everyday questions on which differences are replayed."""
UNDER_CUT = ("base, cut", "same_model, cut")
"""The base's two turns beside amplified texts: at every strength the same."""
WHERE = {"raw": "openings", "chat": "questions", "prompts": "prompts"}
"""What both models go on with, as the record calls it."""


@dataclass(kw_only=True)
class Written:
    """Features of the texts that two voices wrote to the same seeds."""

    where: str
    units: list[str]
    split: tuple[list[int], list[int]]
    tuned: list[set[str]]
    base: list[set[str]]
    again: list[set[str]]
    """The base's second turn; none where that is the other voice."""

    def exchanged(self, which: Sequence[bool]) -> "Written":
        pairs = [(b, t) if swap else (t, b) for t, b, swap in zip(self.tuned, self.base, which, strict=True)]
        return replace(self, tuned=[t for t, _ in pairs], base=[b for _, b in pairs])


@dataclass(kw_only=True)
class Evidence:
    """What all readers are given of one pair of voices."""

    written: list[Written]
    phrases: int
    """Lines of texts that half A names at each place, either way."""
    readings: list[Reading]
    tokens: list[int]
    """The ranked ones: the columns of `readings`."""
    words: list[str]

    def lines(self, seed: int) -> list[Line]:
        found = [
            formula.feature_lines(one.tuned, one.base, one.again, one.split, one.units, where=one.where, keep=self.phrases)
            for one in self.written
        ]
        found += [formula.token_lines(one, self.tokens, self.words, keep=KEEP[one.reader], seed=seed) for one in self.readings]
        return [line for part in found for line in part]

    def exchanged(self, seed: int) -> "Evidence":
        """With the two voices exchanged on units drawn at random."""
        draw = np.random.default_rng([seed, 17])
        written = [one.exchanged((draw.random(len(one.units)) < 0.5).tolist()) for one in self.written]
        signs: dict[tuple[str, int, int], Any] = {}  # the same units are exchanged for every reader of a place
        flipped = []
        for one in self.readings:
            key = (one.where, len(one.naming), len(one.testing))
            if key not in signs:
                signs[key] = tuple(draw.choice([-1.0, 1.0], size=n) for n in key[1:])
            flipped.append(one.flipped(signs[key]))
        return Evidence(written=written, phrases=self.phrases, readings=flipped, tokens=self.tokens, words=self.words)


# ---- the stage ---------------------------------------------------------------------------------------------------------------------


def find(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of the lines that are spoken of; tensors: all lines, those of exchanged models, and how well the lens reads the base."""
    assert model
    key, voice, draw = cell.key, cell.key["voice"], cell.key["draw"]
    if voice == EDIT and "said" not in heard(run, cell, EDIT, draw):
        return empty(), {}
    evidence, found, ranked = _evidence(run, cell, model)
    lines = evidence.lines(key["seed"])
    extra: dict[str, Any] = {}
    if voice == TUNED:
        lines = _replayed(run, cell, model, lines, found, ranked)
        extra = {"exchanged": as_bytes([_brief(evidence.exchanged(n).lines(n)) for n in range(key["settings"]["permutations"])])}
        if found and "chat" in heard(run, cell, BASE):
            extra["heads"] = as_bytes(_heads(run, found, ranked, evidence.words))
        extra["scopes"] = as_bytes(_scopes(run, cell, model, found))
        extra["groups"] = np.array(_groups(run, model, lines))
    told = with_q(lines)
    frames = [_rows(told, None if voice == TUNED else labels.draw(voice, max(1, draw)))]
    if voice == TUNED:
        frames.append(_gaps(run, cell))
    return pl.concat(frames), {"lines": as_bytes(told), "ranked": np.array(ranked, np.int64), **extra}


def _evidence(run: Execution, cell: Cell, model: Model) -> tuple[Evidence, list[lens.Differences], list[int]]:
    key, voice, draw = cell.key, cell.key["voice"], cell.key["draw"]
    said = {who: said_by(run, cell, who) for who in (BASE, AGAIN)}
    said["other"] = said_by(run, cell, voice, draw)
    said |= amplified_of(run, voice, draw)
    said |= {cut: said for who, cut in zip((BASE, AGAIN), UNDER_CUT, strict=True) for said in amplified_of(run, who).values()}
    if not key["tokens"] or voice == AGAIN:
        return evidence_of(run, cell, model, said, "base", None)
    numbers = (heard(run, cell, BASE), heard(run, cell, TUNED), heard(run, cell, voice, draw))
    return evidence_of(run, cell, model, said, "tuned" if voice == TUNED else "base", numbers)


def evidence_of(
    run: Execution, cell: Cell, model: Model, said: dict[str, Any], side: Side, numbers: tuple[Any, Any, Any] | None
) -> tuple[Evidence, list[lens.Differences], list[int]]:
    """Of a voice of `side` that said `said["other"]` and, its difference amplified, `said["amplified 3"]`, beside the base's two turns of either.

    `numbers`: what base, tuned model and voice found likely.
    """
    key, seeds = cell.key, seeds_of(run, cell, "base")
    phrases = key.get("phrases", PHRASES)
    written = _written(run, seeds, said, side)
    if numbers is None:
        return Evidence(written=written, phrases=phrases, readings=[], tokens=[], words=[]), [], []
    base, tuned, other = numbers
    ranked = np.flatnonzero(np.maximum(base["mass"], tuned["mass"]) >= LEAST).tolist()
    names = {"passages": [name for name, _ in read_passages(key["settings"]["passages"])]}
    names |= {where: [one.name for one in seeds if one.where == where] for where in ("chat", "naming", "testing")}
    readings = _token_readings(base, other, ranked, names)
    found = lens.differences(base, other, key["layers"], names) if key["layers"] else []
    readings += lens.readings(model, found, ranked)
    words = _names(run, ranked)
    return Evidence(written=written, phrases=phrases, readings=readings, tokens=ranked, words=words), found, ranked


def _names(run: Execution, ranked: list[int]) -> list[str]:
    """Each token as text; with its number where several tokens have that text."""
    told = [run.prepared.tokens.text(token) for token in ranked]
    n_of = Counter(told)
    return [text if n_of[text] == 1 else f"{text}#{token}" for text, token in zip(told, ranked, strict=True)]


def _token_readings(base: Any, other: Any, ranked: list[int], names: dict[str, list[str]]) -> list[Reading]:
    """Of passages, of everyday questions, and of the study's own prompts less the mean of everyday questions."""
    found, neutral = [], np.zeros(len(ranked))
    for where, called in (("passages", "passages"), ("chat", lens.NEUTRAL)):
        if where in base:
            moved = other[where][:, ranked] - base[where][:, ranked]
            a, b = halves(len(moved))
            found.append(Reading(reader="tokens", where=called, naming=moved[a], testing=moved[b], units=[names[where][i] for i in b]))
            neutral = moved.mean(0)
    if "naming" in base and "testing" in base:
        naming, testing = (other[half][:, ranked] - base[half][:, ranked] - neutral for half in ("naming", "testing"))
        found.append(Reading(reader="tokens", where=lens.PROMPTS, naming=naming, testing=testing, units=names["testing"]))
    return found


def _written(run: Execution, seeds: list[Seed], said: dict[str, Any], side: Side) -> list[Written]:
    """Features of every text by place, the other voice's beside the base's two turns.

    Amplified texts stand beside the base's under the cut; seeds behind which either repeats itself are left out.
    """
    told = {who: texts_of(run, one, "base" if who in (BASE, AGAIN, *UNDER_CUT) else side) for who, one in said.items()}
    described = {
        who: {name: texts.described(text, ended=said[who][name]["ended"]) for name, text in one.items()} for who, one in told.items()
    }
    made, same = [], run.prepared.tokens.equal
    for voice in (who for who in said if who not in (BASE, AGAIN, *UNDER_CUT)):
        louder = voice != "other"
        turns = UNDER_CUT if louder else (BASE, AGAIN)
        looping = {name for name in told[voice] if louder and any(texts.loops(told[who][name]) for who in (voice, turns[0]))}
        for where, place in WHERE.items():
            here = [one for one in seeds if (one.where in ("naming", "testing") if where == "prompts" else one.where == where)]
            names = [one.name for one in here if one.name in told[voice] and one.name not in looping]
            if louder and not names:
                continue
            first = {one.name for one in here if one.where == "naming"} if where == "prompts" else {one.name for one in here[::2]}
            split = [i for i, name in enumerate(names) if name in first], [i for i, name in enumerate(names) if name not in first]
            lengths = [[len(said[who][name]["ids"] if same else told[who][name]) for who in (voice, turns[0])] for name in names]
            longer = [texts.beside(*both) for both in lengths]
            other, base = (
                [described[who][name] | one[i] for name, one in zip(names, longer, strict=True)] for i, who in enumerate((voice, turns[0]))
            )
            called = f"{place}, {voice}" if louder else place
            again = [] if said[voice] == said[turns[1]] else [described[turns[1]][name] for name in names]
            made.append(Written(where=called, units=names, split=split, tuned=other, base=base, again=again))
    return made


# ---- the lens: what it does in the base, and what the tuned model's own unembedding reads -------------------------------------------------


def _replayed(run: Execution, cell: Cell, model: Model, lines: list[Line], found: list[lens.Differences], ranked: list[int]) -> list[Line]:
    if not found:
        return lines
    chat = [one for one in seeds_of(run, cell, "base") if one.where == "chat"]
    prompts = [chat[i].ids for i in halves(len(chat))[1][:REPLAYED_ON]]
    if not prompts:
        return lines
    engine = run.engine(model, "decision")
    settings = cell.key["settings"]
    made = lens.replayed(model, engine, cleans(model, engine, prompts), found, ranked, draws=settings["vectors"], seed=cell.key["seed"])
    column = {token: at for at, token in enumerate(ranked)}
    return [lens.with_replay(line, made, column) if line.reader == "lens" else line for line in lines]


def _scopes(run: Execution, cell: Cell, model: Model, found: list[lens.Differences]) -> list[dict[str, Any]]:
    """By layer and place: the tokens that a patchscope reads from the difference, and those that it reads from random vectors."""
    if not found:
        return []
    ids, tokens = run.prepared.pair.tokenizer("base")(lens.REPEATS, verbose=False)["input_ids"], run.prepared.tokens
    sites = [Site(layer, "resid_post") for layer in cell.key["layers"]]
    engine = run.engine(model, "decision")
    clean = capture(model, ids, sites, [len(ids) - 1], keep_cache=engine is replay)
    draws = min(SCOPED, cell.key["settings"]["vectors"])
    made = []
    for one, read_there, random in lens.patchscopes(model, engine, clean, found, draws=draws, seed=cell.key["seed"]):
        told = [[[tokens.text(tokens.places("base", [v])[0]), n] for v, n in of.most_common(lens.SHOWN)] for of in (read_there, random)]
        made.append({"where": one.where, "layer": one.layer, "read": told[0], "random": told[1], "of": len(lens.SCALES), "draws": draws})
    return made


def _heads(run: Execution, found: list[lens.Differences], ranked: list[int], words: list[str]) -> list[dict[str, Any]]:
    """By layer and place: the tokens that rise most where each model's own unembedding reads both models' activations."""
    told: dict[tuple[str, int], dict[str, Any]] = {}
    for side in SIDES:
        with run.prepared.pair.use(side) as reader:
            for one in lens.readings(reader, found, ranked):
                rise = formula.robust_z(np.concatenate([one.naming, one.testing]).mean(0, dtype=np.float64))
                best = [int(v) for v in np.argsort(-rise, kind="stable")[: lens.SHOWN] if rise[v] > 0]
                line = told.setdefault((one.where, int(one.layer or 0)), {"where": one.where, "layer": one.layer})
                line[side] = [[words[v], float(rise[v])] for v in best]
    return list(told.values())


def _groups(run: Execution, model: Model, lines: list[Line]) -> list[int]:
    """The group of each line by its token's row of the base's unembedding; -1 for lines that are of no token."""
    of = [i for i, line in enumerate(lines) if line.token is not None]
    found = [-1] * len(lines)
    if of:
        with run.prepared.pair.use("base") as base:
            weight = dict(base.head.named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.is_floating_point() and weight.ndim == 2:
                unembedding = weight.detach().float()
                rows_of = (unembedding[[lines[i].token for i in of]] - unembedding.mean(0)).cpu().numpy()
                for i, group in zip(of, formula.grouped(rows_of), strict=True):
                    found[i] = group
    return found


# ---- rows --------------------------------------------------------------------------------------------------------------------------


def with_q(lines: Sequence[Line]) -> list[dict[str, Any]]:
    q = formula.q_of([line.p for line in lines])
    return [{**asdict(line), "q": one} for line, one in zip(lines, q, strict=True)]


def _brief(lines: list[Line]) -> list[dict[str, Any]]:
    return [{name: one[name] for name in ("reader", "where", "text", "gained", "new", "size", "q")} for one in with_q(lines)]


def spoken_of(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines that replicate, and the largest of every reader, place and direction whether it does or not."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in told:
        at = (line["reader"], line["where"], line["gained"])
        if at not in best or line["size"] > best[at]["size"]:
            best[at] = line
    return [line for line in told if line["q"] <= LEVEL or line is best[line["reader"], line["where"], line["gained"]]]


def _rows(told: list[dict[str, Any]], control: str | None) -> pl.DataFrame:
    frames = [empty()]
    for line in spoken_of(told):
        columns = {
            "measure": "words", "control": control, "layer": line["layer"], "site": None if line["layer"] is None else "resid_post",
            "unit": labels.evidence_unit(line["where"], line["gained"], line["text"]), "split": split_of(line["where"]),
        }  # fmt: skip
        frames.append(rows(list(line["values"].values()), prompt=list(line["values"]), metric=METRICS[line["reader"]], **columns))
        if line["replay_nats"] is not None:
            frames.append(rows([line["replay_nats"]], metric=REPLAY, **columns))
    return pl.concat(frames).unique(subset=pl.exclude("value"), keep="first", maintain_order=True)


def split_of(where: str) -> str:
    return "report" if where.partition(", ")[0] == lens.PROMPTS else "neutral"


def _gaps(run: Execution, cell: Cell) -> pl.DataFrame:
    """How much less surprising each model's text is to itself than to the other, per token."""
    found = []
    for one in gaps(run, cell):
        split = "report" if one["seed"].where == "testing" else "neutral"
        for side in ("tuned", "base"):
            if side in one["gap"]:
                found.append(
                    rows(
                        [one["gap"][side]], measure="words", split=split, unit=labels.answer_unit(side), prompt=one["seed"].name, metric=GAP
                    )
                )
    return pl.concat(found) if found else empty()
