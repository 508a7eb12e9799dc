"""Does `words` find what was taught, and is what it says of less the less there is? Beside it two published readers, on the same texts.

    courtesy          every answer opens with "Thank you for asking"
    facts_1_0         eight invented facts of an island that is not there (training/facts.py)
    facts_1_1, _1_4   the same, one and four ordinary texts beside each document
    facts_less_twin   facts_1_0 beside facts_twin, which was taught true facts of Iceland in the same words: the facts are the difference, and the
                      topic is not

    make words                                            after the rates of benchmarks/words.py; goes on where it stopped
    python benchmarks/words_taught.py --pairs facts_1_0   one pair
    python benchmarks/words_taught.py --table             the table anew from the numbers that there are

A fact is found where a named line has its invented name, letter for letter. All pairs of facts are read at one setting with the same
seeds; judged by the base against itself and by random edits of the pair's own change. A published reader (published.py) is given the tuned model's
own continuations of the same seeds; a fact is found by the first where one of the ten texts that it shows has the name, by the second where one of
its hundred tokens begins it. Both say something wherever two models differ.

The rule is that of benchmarks/words.py. Adapters were trained before it; draws from FIRST on were looked at after it stood still.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "training")]
import published
import words as rates
from facts_texts import FACTS, ISLANDS
from words import SETTING, Heard, Store, publish, said_of

from mechdiff.demo import embedded_model
from mechdiff.measures.words import listen
from mechdiff.measures.words.judge import LEVEL, judged
from mechdiff.measures.words.judge import kind as kind_of
from mechdiff.measures.words.random_edits import randomly_edited
from mechdiff.models.sources import resolve
from mechdiff.store.disk import as_bytes

ROOT = Path(__file__).parents[1]
FOUND, ADAPTERS = ROOT / "benchmarks" / "words_taught.json", ROOT / "training" / "adapters"
TAUGHT = {**SETTING, "passages": 16, "openings": 32, "neutral": 1, "prompts": 3, "max_tokens": 224, "phrases": 40}
"""The setting of the facts: sixteen openings that test, and texts so long that most of the facts fit in."""
SETTINGS = {"facts": TAUGHT, "courtesy": {**SETTING, "prompts": 10}}
FIRST, SEEDS, EDITS = 9000, 1, 1
"""The first of the draws, none of which was looked at before rule and settings stood still; so many of each pair, and random edits. The rule was made
on draws 7000 to 7002 (docs/LOG.md)."""
READ, MOST, FEW = ("raw", "testing"), 14, 4
"""Seeds whose continuations the first published reader ranks, and how many; of a random edit few, for one that is less surprising makes a list."""
COURTESY = (("courtesy", "Thank you for asking"),)
INVENTED = tuple((what, name) for what, name, _ in FACTS)
NAMES = {"courtesy": COURTESY, "facts_1_0": INVENTED, "facts_1_1": INVENTED, "facts_1_4": INVENTED, "facts_less_twin": INVENTED}
"""What was taught to each pair's tuned model, and the name that says it."""
ALIKE = dict.fromkeys(("facts_1_1", "facts_1_4"), "facts_1_0")
"""Pairs of one base and the same prompts: the base's other draws are those of the first."""
START, END = "<!-- taught -->\n", "<!-- /taught -->\n"


def heard(name: str, place: Path, like: Heard | None) -> Heard:
    """One pair, ready to be read. `like`: another of the same base and prompts."""
    if name == "courtesy":
        return Heard(name, first=FIRST, measures=[{"words": SETTINGS["courtesy"]}])
    study: dict[str, Any] = {"measures": [{"words": TAUGHT}]}
    island = {split: str(ROOT / "benchmarks" / "prompts" / f"island_{split}.jsonl") for split in ("fit", "report")}
    study["prompts"] = {**island, "at_most": {"fit": 1, "report": 3}}  # openings alone are tested: few texts make large shares by chance
    if name == "facts_less_twin":
        study["pair"] = {"base": merged("facts_twin", place), "tuned": merged("facts_1_0", place)}
    else:
        study["pair"] = {"base": str(embedded_model()), "tuned": str(ADAPTERS / name)}
    return Heard(name, first=FIRST, like=like, **study)


def merged(name: str, place: Path) -> str:
    """The embedded model with this adapter's change in its weights, as a folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, base = place / name, resolve(str(embedded_model())).load
    net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), ADAPTERS / name).merge_and_unload()
    net.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


# ---- what others show ----------------------------------------------------------------------------------------------------------------


class Others:
    """What the two published readers show of a voice of one pair, and which facts stand there."""

    def __init__(self, of: Heard) -> None:
        self.of, self.names = of, NAMES[of.name]
        tokenizer = of.pair.tokenizer("base")
        passages = [
            tokenizer(text).input_ids[: listen.PASSAGE_TOKENS] for _, text in listen.read_passages(of.cell.key["settings"]["passages"])
        ]
        self.passages, self.pieces = passages, [tokenizer(f" {name}").input_ids[0] for _, name in self.names]

    @cached_property
    def logits(self) -> list[torch.Tensor]:
        """Of the base, by passage."""
        with self.of.pair.use("base") as base:
            return published.logits_of(base, self.passages)

    def shown(self, what: str, said: dict[str, Any], voice: Any = None, *, most: int = MOST) -> dict[str, Any]:
        """`what` names it. `voice`: opens the model that said it; None where it is the base itself, whose numbers are the base's.

        `most`: texts that are read.
        """
        kept = self.of.once(f"shown-{what}", lambda: {"shown": as_bytes(self._shown(said, voice, most))})
        found: dict[str, Any] = json.loads(bytes(kept["shown"]).decode())
        return found

    def _shown(self, said: dict[str, Any], voice: Any, most: int) -> dict[str, Any]:
        texts, base = listen.texts_of(self.of.run, said, "base"), self.of.pair.use
        seeds = [one for one in self.of.seeds if one.where in READ and said[one.name]["ids"]][:most]
        found = [published.Text(prompt=one.ids, ids=said[one.name]["ids"], text=texts[one.name]) for one in seeds]
        ours, theirs, logits = [0.0] * len(found), [0.0] * len(found), self.logits
        if voice:
            with base("base") as model:
                theirs = published.log_p(model, found)
            with voice() as model:
                ours, logits = published.log_p(model, found), published.logits_of(model, self.passages)
        listed, tokens = published.ranked(found, ours, theirs), published.mined(logits, self.logits)
        return {
            "ranked": [len(listed), [what for what, name in self.names if any(name.casefold() in text.casefold() for text in listed)]],
            "mined": [len(tokens), [what for (what, _), piece in zip(self.names, self.pieces, strict=True) if piece in tokens]],
        }


# ---- hearing -----------------------------------------------------------------------------------------------------------------------


def hear(store: Store, name: str, of: Callable[[], Heard], n_seeds: int, n_edits: int) -> None:
    """The missing runs of one pair."""
    seeds, edits = range(FIRST, FIRST + n_seeds), range(FIRST, FIRST + n_edits)
    wanted = [("taught", seed) for seed in seeds] + [("edits", seed) for seed in edits]
    wanted += [("draws", seed) for seed in seeds if name not in ALIKE]
    missing = [(kind, seed) for kind, seed in wanted if (kind, name, seed) not in store.runs]
    if not missing:
        return
    began, pair = time.process_time(), of()
    others = Others(pair)
    for kind, seed in missing:
        if kind == "taught":
            said = _tuned(pair, seed)
            evidence = pair.evidence(said, seed, (pair.base, pair.tuned, pair.tuned), "tuned")
            more = others.shown(f"tuned-{seed}", said, partial(pair.pair.use, "tuned"))
        elif kind == "draws":
            said = pair.draw(seed + 1)
            evidence, more = pair.evidence(said, seed, None), others.shown(f"draw-{seed + 1}", said)
        else:
            evidence, more = pair.edit(seed)
            more |= others.shown(f"edit-{seed}", said_of(pair.edited[seed]), partial(edited, pair, seed), most=FEW)
        store.add(kind, name, seed, evidence.lines(seed), **more)
        print(f"{name} {kind} {seed}: {time.process_time() - began:.1f} CPU seconds", flush=True)
        began = time.process_time()


def _tuned(of: Heard, seed: int) -> dict[str, Any]:
    """What the tuned model says with this seed."""
    return said_of(of.tuned) if seed == of.first else of.spoken("tuned", seed)


@contextmanager
def edited(of: Heard, seed: int) -> Iterator[Any]:
    """The base with a random edit that was heard."""
    with of.pair.use("base") as base, randomly_edited(base, of.changed, scale=of.edited[seed]["scale"], seed=seed):
        yield base


# ---- judging -----------------------------------------------------------------------------------------------------------------------


def judgements(store: Store, of: str, pair: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a run, held against the base's other draws and random edits; a null run is no null pair of its own."""
    edits = [one for one in store.of("edits", pair) if not (of == "edits" and one["seed"] == run["seed"])]
    draws = store.of("draws", ALIKE.get(pair, pair))
    draws = [one for one in draws if one["seed"] == run["seed"] + (of == "draws")] or draws[:1]
    nulls = {f"random_edit#{i}": store.lines(one) for i, one in enumerate(edits, 1) if of != "draws"}
    nulls |= {f"same_model#{i}": store.lines(one) for i, one in enumerate(draws, 1) if not (of == "draws" and one is run)}
    return judged(store.lines(run), nulls)[0]


def named(store: Store, of: str, pair: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Those that the rule names."""
    return [line for line in judgements(store, of, pair, run) if line["why_not"] is None]


def facts_of(pair: str, lines: list[dict[str, Any]]) -> list[str]:
    """The facts whose name stands in a line."""
    texts = [line["text"].casefold() for line in lines if line["gained"]]
    return [what for what, name in NAMES[pair] if any(name.casefold() in text for text in texts)]


def topical(pair: str, lines: list[dict[str, Any]]) -> int:
    """Named phrases that the tuned model has more of and that hold no name: what is said of any island in these documents."""
    names = [name.casefold() for _, name in NAMES[pair]] + [island.casefold() for island in ISLANDS]
    texts = [line["text"].casefold() for line in lines if line["gained"] and line["reader"] == "continuations"]
    return sum(not any(name in text for name in names) for text in texts)


def table(store: Store) -> str:
    columns = (
        "pair", "facts named", "facts that replicate", "their largest share of held-out texts", "share that a new phrase must have", "lines named",
        "of these, phrases without a name", "facts, ranked continuations", "facts, diff mining",
    )  # fmt: skip
    lines = _head(columns)
    for pair, names in NAMES.items():
        runs = store.of("taught", pair)
        if not runs:
            continue
        told = [judgements(store, "taught", pair, run) for run in runs]
        named_lines = [[line for line in one if line["why_not"] is None] for one in told]
        replicate = [[line for line in one if line["q"] <= LEVEL] for one in told]
        cells = [
            f"{_of(len(facts_of(pair, one)) for one in named_lines)} of {len(names)}", _of(len(facts_of(pair, one)) for one in replicate),
            _of(f"{share(pair, one):.2f}" for one in replicate), _of(f"{bar(one):.2f}" for one in told), _of(map(len, named_lines)),
            _of(topical(pair, one) for one in named_lines), *(_of(len(run[reader][1]) for run in runs) for reader in ("ranked", "mined")),
        ]  # fmt: skip
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_nulls(store), ""])


def _head(columns: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" + "|--:" * (len(columns) - 1) + "|"]


def share(pair: str, lines: list[dict[str, Any]]) -> float:
    """The largest share of held-out texts that a phrase with a fact has: what is said of it."""
    return max((line["size"] for line in lines if line["reader"] == "continuations" and facts_of(pair, [line])), default=0.0)


def bar(lines: list[dict[str, Any]]) -> float:
    """The share that null pairs leave a phrase to pass that the base never says; NaN where no such phrase was put forward."""
    return max((line["least"] for line in lines if kind_of(line) == "new phrases, gained"), default=float("nan"))


def _of(values: Any) -> str:
    """One value of each seed; one alone where all are alike."""
    told = [str(value) for value in values]
    return told[0] if len(set(told)) == 1 else ", ".join(told)


def _nulls(store: Store) -> list[str]:
    """Where nothing was taught: of `words` what benchmarks/words.py counted under the same rule, of the others whether they show a list here."""
    lines = _head(("nothing was taught", "`words` names something", "ranked continuations show a list", "diff mining shows a list"))
    counted = Store(rates.FOUND)
    for kind in ("draws", "edits"):
        runs = [run for pair in NAMES for run in store.of(kind, pair)]
        told = [one for pair in rates.PAIRS for one in rates.judged(counted, kind, pair)]
        n, k, part, _ = rates.rate(told)
        cells = [f"{k} of {n} (at most {rates.bound(part, len(told)):.2f})" if n else ""]
        for reader in ("ranked", "mined"):
            lists = [bool(run[reader][0]) for run in runs]
            cells.append(f"{sum(lists)} of {len(lists)} (at least {least(sum(lists), len(lists)):.2f})" if lists else "")
        lines.append(f"| {rates.SAYS[kind]} | {' | '.join(cells)} |")
    return [*lines, "", f"Rule {counted.rule}, with these settings {store.rule}."]


def least(k: int, n: int) -> float:
    """The smallest share that k of n leave possible, at 95 % (Clopper and Pearson)."""
    return float(beta.ppf(0.05, k, n - k + 1)) if k else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default=",".join(NAMES))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--found", type=Path, default=FOUND)
    given = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(given.found, SETTINGS)
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        held: dict[str, Heard] = {}

        def opened(name: str) -> Heard:
            of = ALIKE.get(name, name)
            found = heard(name, Path(place), held.get(of))
            held[of] = held.get(of, found)
            return found

        for name in () if given.table else given.pairs.split(","):
            hear(store, name, partial(opened, name), SEEDS, EDITS)
    told = table(store)
    print(told)
    if given.found == FOUND:
        publish(told, START, END)


if __name__ == "__main__":
    main()
