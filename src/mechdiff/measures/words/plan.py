"""A study file may set these options of words; its cells are planned from them."""

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from mechdiff.spacing import evenly_spaced
from mechdiff.store.run_folder import cell_hash
from mechdiff.study.cells import Cell, Item
from mechdiff.study.document import Count, listed, wrong
from mechdiff.study.experiment import PromptSet
from mechdiff.study.options import Options
from mechdiff.study.planner import Planner

DATA = Path(__file__).parents[2] / "data"
NEUTRAL, PASSAGES = DATA / "neutral.jsonl", DATA / "passages.jsonl"
"""Everyday questions, put as a user's; and short prose on everyday things, read as it is."""
SEEDS = "unrelated"
"""The split of the everyday questions in a plan; rows call it `neutral`."""
VAGUE = ("The", "I", "It", "In", "There", "When", "My", "This", "We", "Today", "She said", "For example,", "Once", "Dear", "Yes,", "\n")
"""Openings that say next to nothing."""
OPENING_WORDS = 6
STRONGEST = 10.0
"""Times that a difference may be amplified by."""
CUT = 0.1
"""Share of the likeliest token's probability from which a token may be said where a difference is amplified."""
PASSAGE_TOKENS = 64
"""That are read of a passage."""
BASE, TUNED, AGAIN, EDIT = "base", "tuned", "same_model", "random_edit"
"""Voices: the two models; the base once more, with other draws; the base with a random edit of the change's size."""
AMPLIFIED = "words: amplified texts"
"""What is left out, as a record calls it."""
LINES = 2
"""Of how lines of evidence are made: those of another number are not used."""
PHRASES = 8
"""Lines of texts at each place, either way, where a study does not say."""
TOKEN, FEATURE, LENS, REPLAY, GAP = "token_rise_nats", "feature_gained", "lens_rise_logits", "replay_rise_nats", "own_gap_nats"


QUICK = {"passages": 12, "neutral": 8, "openings": 8, "prompts": 8, "max_tokens": 12, "lens_layers": 1, "vectors": 2, "edits": 1}


def _strengths(given: object) -> tuple[float, ...]:
    found = listed(given)
    for one in found:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 < one <= STRONGEST:
            raise wrong(one, f"a number above 0 and at most {STRONGEST:g}")
    return tuple(sorted(float(one) for one in found))


class WordsOptions(Options):
    presets: ClassVar = {"paper": {}, "audit": {}}

    passages: Count = 64  # of the shipped texts that are read
    neutral: Count = 32  # of the shipped everyday questions that are read, and answered
    openings: Count = 48  # beginnings of texts that both models go on with: two in three shipped, one vague
    prompts: Count = 20  # of the study's own prompts in each half: fit and select name, report tests
    max_tokens: Annotated[int, Field(ge=4, le=1024)] = 48  # of what is said
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.7  # of the draws
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95  # of these draws: the likeliest tokens that have so much probability
    lens_layers: Count = 5  # blocks whose activations are read by the unembedding, evenly spaced, the last beside them
    vectors: Count = 8  # random vectors that replayed differences are compared with
    edits: Annotated[int, Field(ge=0, le=100)] = 2  # random edits of the base as large as the fine-tune
    permutations: Annotated[int, Field(ge=0, le=1000)] = 20  # of which model is which, unit by unit
    phrases: Count = PHRASES  # features of texts that the half that names puts forward at each place, either way
    amplify: Annotated[tuple[float, ...], BeforeValidator(_strengths)] = ()  # a of z_t + a (z_t - z_b): texts drawn from that too
    quick: bool = False  # fewer of everything that is not given

    @model_validator(mode="before")
    @classmethod
    def _fewer(cls, given: Any) -> Any:
        return {**QUICK, **given} if isinstance(given, dict) and given.get("quick") is True else given


def prompts(options: WordsOptions) -> tuple[PromptSet, ...]:
    """Everyday questions, other than the study's own prompts."""
    return (PromptSet(split=SEEDS, file=NEUTRAL, n=options.neutral, spread=True, unread=True, any_length=True),)


@cache
def passages() -> tuple[tuple[str, str], ...]:
    """(id, text) of the shipped texts."""
    lines = (json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines())
    return tuple((one["id"], one["text"]) for one in lines)


def read_passages(n: int) -> tuple[tuple[str, str], ...]:
    return evenly_spaced(n, passages())


def openings(n: int) -> tuple[tuple[str, str], ...]:
    """(id, text) of so many that both models go on with: two beginnings of shipped texts, then a vague one, and so on."""
    begun = [(f"opening-{name.rpartition('-')[2]}", " ".join(text.split()[:OPENING_WORDS])) for name, text in passages()]
    vague = [(f"vague-{number:02d}", text) for number, text in enumerate(VAGUE, 1)]
    mixed = [one for i, pair in enumerate(zip(begun[::2], begun[1::2], strict=True)) for one in (*pair, *vague[i : i + 1])]
    return tuple(mixed[:n])


def cells(planner: Planner) -> Iterator[Cell]:
    """What every voice says and finds likely, what both models find of each other's texts, and the lines of evidence of every pair."""
    options = planner.study.asked(WordsOptions)
    if not options:
        return
    naming, testing = own_prompts(planner, options)
    if not testing:
        planner.skip("words on the study's own prompts", "there are fewer than two of them")
    items = (*planner.splits.get(SEEDS, ()), *naming, *testing)
    split = [item.id for item in planner.splits.get(SEEDS, ())]
    shapes = planner.shapes
    same = planner.one_vocabulary
    states = same and (shapes["base"].d_model, shapes["base"].n_layers) == (shapes["tuned"].d_model, shapes["tuned"].n_layers)
    if not same:
        planner.skip("words: tokens and lens", "the two models have different vocabularies; continuations are compared as texts")
    elif not states:
        planner.skip("words: lens", "the two models differ in depth or width")
    edits = options.edits
    if edits and (why := planner.ungraftable or ("" if states else "the two models differ in vocabulary, depth or width")):
        planner.skip("words: random edits as large as the fine-tune", why)
        edits = 0
    n_layers = shapes["base"].n_layers
    layers = sorted({*evenly_spaced(options.lens_layers, range(n_layers)), n_layers - 1}) if states else []
    what = {
        "settings": options.model_dump(include=set(WordsOptions.model_fields) - {"edits", "prompts", "phrases", "amplify", "quick"}),
        "passages": cell_hash({"texts": passages(), "vague": VAGUE, "words": OPENING_WORDS, "tokens": PASSAGE_TOKENS}),
        "neutral": split, "naming": [[_split(planner, item), item.id] for item in naming], "testing": [item.id for item in testing],
        "layers": layers, "tokens": same, "seed": planner.study.seed,
    }  # fmt: skip
    yield from _voices(planner, items, what, edits, _beyond(planner, options))


def _beyond(planner: Planner, options: WordsOptions) -> dict[str, Any]:
    """What is asked for beyond the defaults of old: the keys of other cells do not have it."""
    found: dict[str, Any] = {"phrases": options.phrases} if options.phrases != PHRASES else {}
    if options.amplify and not planner.one_vocabulary:
        planner.skip(AMPLIFIED, "the two models have different vocabularies; there is no difference of logits, token by token")
    elif options.amplify and planner.in_turn:
        planner.skip(AMPLIFIED, "both models are read at every token, and memory holds one of them at a time. Give --memory both")
    elif options.amplify:
        found |= {"amplify": list(options.amplify), "cut": CUT}
    return found


def _voices(planner: Planner, items: Sequence[Item], what: dict[str, Any], edits: int, beyond: dict[str, Any]) -> Iterator[Cell]:
    n_seeds = len(items) + what["settings"]["openings"]
    read = sum(item.tokens for item in items) + what["settings"]["passages"] * PASSAGE_TOKENS
    said = n_seeds * what["settings"]["max_tokens"]
    flops = planner.flops(read + said, said + what["settings"]["passages"] * PASSAGE_TOKENS)

    def cell(stage: str, side: str, cost: float, **more: Any) -> Cell:
        key = planner.key(items, stage=stage, **what, **more)
        times = {"words_heard": 1, "words_null": 1, "words_amplified": passes(more.get("voice"))}
        steps = times.get(stage, 0) * what["settings"]["max_tokens"]
        return Cell(stage=stage, key=key, items=tuple(items), side=side, flops=cost, steps=steps)

    def passes(voice: str | None) -> int:
        """A token of amplified texts: of both models for each strength; of the base and its second turn, whose difference is none, one."""
        return 1 if voice in (BASE, AGAIN) else 2 * len(beyond.get("amplify", ()))

    for voice, side in ((BASE, "base"), (AGAIN, "base"), (TUNED, "tuned")):
        yield cell("words_heard", side, flops, voice=voice, draw=0)
    for draw in range(1, edits + 1):
        yield cell("words_null", "base", 1.5 * flops, voice=EDIT, draw=draw)
    if "amplify" in beyond:
        louder = {name: beyond[name] for name in ("amplify", "cut")}
        for voice, draw in ((BASE, 0), (AGAIN, 0), (TUNED, 0), *((EDIT, draw) for draw in range(1, edits + 1))):
            cost = passes(voice) * planner.flops(sum(item.tokens for item in items) + said, said)
            yield cell("words_amplified", "base", cost, voice=voice, draw=draw, **louder)
    for side in ("base", "tuned"):
        yield cell("words_scored", side, planner.flops(sum(item.tokens for item in items) + 2 * said, 2 * said), reader=side)
    runs = len(what["layers"]) * (4 + what["settings"]["vectors"])
    for voice, draw in ((TUNED, 0), (AGAIN, 0), *((EDIT, draw) for draw in range(1, edits + 1))):
        cost = planner.flops(read / 4 + runs * len(what["neutral"]), runs * len(what["neutral"]))
        yield cell("words", "base", cost, voice=voice, draw=draw, lines=LINES, **beyond)


def own_prompts(planner: Planner, options: WordsOptions) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The study's prompts that name (fit and select; else every other report prompt), and those that test (report)."""
    report = planner.whole("report") if "report" in planner.splits else ()
    others = tuple(item for split in ("fit", "select") if split in planner.splits for item in planner.whole(split))
    naming, testing = (others, report) if others else (report[::2], report[1::2])
    if not naming or not testing:
        return (), ()
    return evenly_spaced(options.prompts, naming), evenly_spaced(options.prompts, testing)


def _split(planner: Planner, item: Item) -> str:
    return next(split for split in ("fit", "select", "report") if item in planner.splits.get(split, ()))
