"""How often does `words` name something that nobody taught? Pairs without any teaching, of four kinds, read and judged as any pair is.

    draws      the base against itself with other random draws: texts alone can differ
    edits      the base against itself with a random edit of a fine-tune's singular values, as far away as the fine-tune is
    exchanged  a fine-tune's own evidence with the two models exchanged seed by seed at random
    copy       the base against itself with the same draws

Beside them `taught`: the fine-tunes themselves at the same setting, judged by the same null pairs. The setting is the demo's.

    make words                                    what is missing of the counts below; writes docs/WORDS.md's table and benchmarks/words.json
    python benchmarks/words.py --edits 10         so many random edits of each fine-tune
    python benchmarks/words.py --table            the table anew from the numbers that there are

Each voice is heard once and stands in several null runs: draw s + 1 is the tuned model of run s, whose null pair is that of run s + 1; each random
edit is judged by each of the PARTNERS that follow it. So runs are not independent: the standard error is a jackknife's over voices, and the upper
bound (Clopper and Pearson) counts every voice once. A run is kept under its kind, its pair, its seed and a hash of the rule (what decides, without
its comments, and the setting); one of another rule is never used. Nothing that was heard with these seeds was looked at before the rule stood still.
What is heard is kept apart, under a hash of the code that speaks and reads: where the rule alone changes no model speaks again.
The rule's fourth condition (written into the base) can only take names away, and is left out: the rates are upper bounds.
"""

import argparse
import ast
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from mechdiff.demo import DATA, PROMPTS, embedded_model
from mechdiff.engine import generation
from mechdiff.engine.activations import Clean
from mechdiff.engine.generation import speak_on
from mechdiff.engine.reading import read_apart
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.measures.words import compute, formula, judge, lens, listen, random_edits, texts
from mechdiff.measures.words.random_edits import deltas, randomly_edited, scaled_to
from mechdiff.models.modules import changes_of
from mechdiff.store.disk import as_bytes, replace
from mechdiff.study.config import RunOptions
from mechdiff.study.execution import Execution
from mechdiff.study.prepare import prepare

ROOT = Path(__file__).parents[1]
FOUND, PAGE = ROOT / "benchmarks" / "words.json", ROOT / "docs" / "WORDS.md"
PAIRS = ("kazakh", "arithmetic")
SETTING = dict(EXPERIMENTS["words"].demo.options)
PARTNERS = 5
FIRST = 6000
"""The first seed: from it on none was looked at before the rule was frozen."""
KEPT = ROOT / ".cache" / "heard"
"""What was heard, by what decides what is heard: under another rule the same texts are judged anew, and no model speaks again."""
START, END = "<!-- rates -->\n", "<!-- /rates -->\n"


def rule(setting: Mapping[str, Any] = SETTING) -> str:
    """A hash of what decides what is heard, which lines there are and which are named; comments and docstrings do not."""
    return _hash((formula, judge, texts, compute, lens, listen, random_edits), setting)


def _hash(modules: Sequence[Any], setting: Mapping[str, Any]) -> str:
    decides = [_bare(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))) for module in modules]
    return hashlib.sha256("".join([*decides, json.dumps(setting, sort_keys=True)]).encode()).hexdigest()[:12]


def hearing(setting: Mapping[str, Any]) -> str:
    """A hash of what decides what is heard behind a seed: the code that speaks and reads, random edits, and the setting."""
    return _hash((generation, listen, random_edits), setting)


def _bare(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [one for one in node.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    return ast.dump(tree)


class Store:
    """The runs that there are, one line each; a run is written as soon as it is done."""

    def __init__(self, path: Path, setting: Mapping[str, Any] = SETTING) -> None:
        self.path, self.rule = path, rule(setting)
        told = json.loads(path.read_text()) if path.exists() else []
        self.runs = {(one["kind"], one["pair"], one["seed"]): one for one in told if one["rule"] == self.rule}

    def add(self, kind: str, pair: str, seed: int, lines: Sequence[formula.Line], **more: Any) -> None:
        told = compute.with_q(lines)
        largest = judge.largest(told)
        kept = [one for one in told if one["q"] <= judge.LEVEL or one["size"] >= largest[judge.kind(one)]]
        self.runs[kind, pair, seed] = {
            "rule": self.rule, "kind": kind, "pair": pair, "seed": seed, "tested": len(told), **more,
            "lines": [[one["reader"], one["text"], one["gained"], one["new"], round(one["size"], 4), round(one["q"], 5)] for one in kept],
        }  # fmt: skip
        lines_of = [json.dumps(one, ensure_ascii=False) for one in self.runs.values()]
        self.path.write_text("[\n" + ",\n".join(lines_of) + "\n]\n", encoding="utf-8")

    def lines(self, one: dict[str, Any]) -> list[dict[str, Any]]:
        return [dict(zip(("reader", "text", "gained", "new", "size", "q"), line, strict=True)) for line in one["lines"]]

    def of(self, kind: str, pair: str) -> list[dict[str, Any]]:
        return sorted((one for (k, p, _), one in self.runs.items() if (k, p) == (kind, pair)), key=lambda one: one["seed"])


# ---- hearing -----------------------------------------------------------------------------------------------------------------------


class Heard:
    """One pair, whose base speaks with any seed and takes any random edit."""

    def __init__(self, name: str, *, first: int = FIRST, like: "Heard | None" = None, kept: Path = KEPT, **study: Any) -> None:
        """`study`: what its study has other than the embedded pair's of this name. `like`: a pair of the same base that reads and says the same.

        `kept`: the folder in which what is heard stays.
        """
        told = {split: str(DATA / "prompts" / f"{name}_{split}.jsonl") for split in PROMPTS}
        asked = make_study({
            "pair": {"base": str(embedded_model()), "tuned": str(DATA / "adapters" / name)}, "prompts": {**told, "at_most": PROMPTS},
            "measures": [{"words": SETTING}], **study,
        })  # fmt: skip
        self.name, self.first = name, first
        self.run = Execution(prepare(asked, RunOptions(device="cpu"), EXPERIMENTS), None)
        self.cell = next(one for one in self.run.cells if one.stage == "words")
        self.pair = self.run.prepared.pair
        self.seeds = listen.seeds_of(self.run, self.cell, "base")
        self.kept = kept / f"{name}-{hearing(self.cell.key['settings'])}"
        self.said: dict[int, dict[str, Any]] = {}
        self.read: dict[str, list[Clean]] = {}
        self.edited: dict[int, dict[str, Any]] = {}
        """What each random edit's voice was heard to say and find likely, and its `scale`."""
        self.base = like.base if like else self.once("base", partial(self._voice, "base"))
        self.said |= like.said if like else {self.first: said_of(self.base)}
        self.tuned = self.once("tuned", partial(self._voice, "tuned"))
        self.prompts = listen.scaled_on(self.run, self.cell)
        self.scale = 1.0

    def once(self, what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Arrays by name: read where they were heard before, else heard and kept."""
        path = self.kept / f"{what}-{self.first}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file := io.BytesIO(), **make())
            replace(path, file.getvalue())
        with np.load(path) as found:
            return dict(found)

    def _voice(self, side: Any) -> dict[str, Any]:
        with self.pair.use(side) as model:
            return listen.heard_of(self.run, self.cell, model, seed=self.first)

    @cached_property
    def own(self) -> torch.Tensor:
        """The base's distributions behind the prompts on which edits are scaled."""
        with self.pair.use("base") as base:
            return listen.laws_of(self.run, base, self.prompts)

    @cached_property
    def wanted(self) -> float:
        """How far the tuned model diverges there, in nats."""
        with self.pair.use("tuned") as tuned:
            return listen.kl_nats(listen.laws_of(self.run, tuned, self.prompts), self.own)

    @cached_property
    def changed(self) -> dict[str, torch.Tensor]:
        """dW of every changed tensor."""
        with self.pair.use("base") as base:
            return deltas(base, changes_of(self.pair, base))

    def draw(self, seed: int) -> dict[str, Any]:
        """What the base says with this seed."""
        if seed not in self.said:
            self.said[seed] = said_of(self.once(f"draw-{seed}", lambda: {"said": as_bytes(self.spoken("base", seed))}))
        return self.said[seed]

    def spoken(self, side: Any, seed: int) -> dict[str, Any]:
        """What a model says with this seed."""
        with self.pair.use(side) as model:
            if side not in self.read:  # once, whatever the draws
                self.read[side] = read_apart(model, [one.ids for one in self.seeds])
            said = speak_on(model, self.read[side], listen.speech_of(self.run, self.cell, model, seed))
        most = self.cell.key["settings"]["max_tokens"]
        return {one.name: {"ids": ids.tolist(), "ended": len(ids) < most} for one, ids in zip(self.seeds, said, strict=True)}

    def evidence(
        self, said: dict[str, Any], seed: int, numbers: Any, side: Any = "base", *, base_seed: int | None = None
    ) -> compute.Evidence:
        """Of a voice that said this beside the base's draw of `base_seed`; another draw of the base is its prior."""
        here = seed if base_seed is None else base_seed
        told = {"base": self.draw(here), "same_model": self.draw(here + 1), "other": said}
        with self.pair.use("base") as base:
            return compute.evidence_of(self.run, self.cell, base, told, side, numbers)[0]

    def edit(self, seed: int) -> tuple[compute.Evidence, dict[str, float]]:
        """Of a random edit that diverges as far as the fine-tune."""
        heard = self.once(f"edit-{seed}", partial(self._edit, seed))
        told = {name: float(heard[name]) for name in ("scale", "reached_nats", "wanted_nats")}
        self.scale = told["scale"]
        self.edited[seed] = heard | told
        return self.evidence(said_of(heard), self.first, (self.base, heard, heard)), told

    def _edit(self, seed: int) -> dict[str, Any]:
        own, wanted = self.own, self.wanted
        with self.pair.use("base") as base:

            def reached(scale: float) -> float:
                with randomly_edited(base, self.changed, scale=scale * self.scale, seed=seed):
                    return listen.kl_nats(listen.laws_of(self.run, base, self.prompts), own)

            scale, found = scaled_to(wanted, reached)
            scale *= self.scale
            with randomly_edited(base, self.changed, scale=scale, seed=seed):
                heard = listen.heard_of(self.run, self.cell, base, seed=self.first)
        return heard | {"scale": np.array(scale), "reached_nats": np.array(found), "wanted_nats": np.array(wanted)}

    def taught(self) -> compute.Evidence:
        return self.evidence(said_of(self.tuned), self.first, (self.base, self.tuned, self.tuned), "tuned")


def said_of(heard: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(heard["said"]).decode())
    return found


def hear(store: Store, name: str, wanted: dict[str, int]) -> None:
    """The missing runs of one pair, those that cost least first."""
    missing = {
        kind: [FIRST + i for i in range(n) if (kind, name, FIRST + i) not in store.runs]
        for kind, n in {**wanted, "taught": 1, "nulls": 1}.items()
    }
    if not any(missing.values()):
        return
    heard = Heard(name)
    taught = heard.taught()
    for kind, seed in _in_turn(missing):
        began = time.process_time()
        more: dict[str, Any] = {}
        if kind == "taught":
            evidence = taught
        elif kind == "nulls":
            evidence = heard.evidence(heard.draw(FIRST + 1), FIRST, None)
        elif kind == "exchanged":
            evidence = taught.exchanged(seed)
        elif kind == "copy":
            evidence = heard.evidence(heard.draw(seed), seed, (heard.base,) * 3)
        elif kind == "draws":
            evidence = heard.evidence(heard.draw(seed + 1), seed, None)
        else:
            evidence, more = heard.edit(seed)
        store.add(kind, name, seed, evidence.lines(seed), **more)
        print(f"{name} {kind} {seed}: {time.process_time() - began:.1f} CPU seconds", flush=True)


def _in_turn(missing: dict[str, list[int]]) -> Iterator[tuple[str, int]]:
    for kind in ("taught", "nulls", "copy", "exchanged"):
        yield from ((kind, seed) for seed in missing.get(kind, []))
    for i in range(max(map(len, missing.values()))):
        yield from ((kind, missing[kind][i]) for kind in ("edits", "draws") if i < len(missing.get(kind, [])))


# ---- judging -----------------------------------------------------------------------------------------------------------------------


def judged(store: Store, kind: str, pair: str) -> list[list[list[str]]]:
    """By voice and null run: the texts that are named."""
    found = []
    for one in store.of(kind, pair):
        nulls = [{name: store.lines(other) for name, other in null.items()} for null in _nulls(store, kind, pair, one["seed"])]
        found.append([[line["text"] for line in judge.judged(store.lines(one), null)[0] if line["why_not"] is None] for null in nulls])
    return [one for one in found if one]


def _nulls(store: Store, kind: str, pair: str, seed: int) -> list[dict[str, dict[str, Any]]]:
    """The null pairs by which a voice is judged, one set for each run that it stands in."""
    if kind == "copy":
        return [{}]
    if kind == "draws":
        after = store.runs.get((kind, pair, seed + 1))
        return [{"same_model#1": after}] if after else []
    again, edits = store.of("nulls", pair), [one for one in store.of("edits", pair) if kind != "edits" or one["seed"] != seed]
    if not again:
        return []
    if kind == "edits":
        behind = sum(one["seed"] < seed for one in edits)
        edits = (edits[behind:] + edits[:behind])[:PARTNERS]
    elif kind == "exchanged" and edits:
        edits = [edits[seed % len(edits)]]
    return [{"random_edit#1": one, "same_model#1": again[0]} for one in edits]


def rate(found: list[list[list[str]]]) -> tuple[int, int, float, float]:
    """Null runs, those in which something is named, their share, and its standard error by a jackknife over voices."""
    named = [[bool(texts) for texts in one] for one in found]
    n, k = sum(map(len, named)), sum(map(sum, named))
    if not n:
        return 0, 0, float("nan"), float("nan")
    left = np.array([(k - sum(one)) / (n - len(one)) for one in named if n > len(one)])
    error = float(np.sqrt((len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum())) if len(left) > 1 else float("nan")
    return n, k, k / n, error


SAYS = {
    "draws": "the base against itself, other draws",
    "edits": "a random edit, as far from the base as the fine-tune",
    "exchanged": "the two models exchanged",
    "copy": "a copy",
    "taught": "the fine-tune itself",
}


def table(store: Store) -> str:
    lines = [
        "| kind | pair | voices | runs | that name something | share ± standard error | at most (95 %) |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    nulls = 0
    for kind, says in SAYS.items():
        of_pairs = {pair: judged(store, kind, pair) for pair in PAIRS}
        is_null = kind not in ("copy", "taught")
        for pair, found in {**of_pairs, **({"both": [one for of in of_pairs.values() for one in of]} if is_null else {})}.items():
            n, k, share, error = rate(found)
            if n:
                told = f"{share:.3f} ± {error:.3f} | {bound(share, len(found)):.3f}" if is_null else " | "
                lines.append(f"| {says} | {pair} | {len(found)} | {n} | {k} | {told} |")
                nulls += n * (pair == "both")
    return "\n".join([*lines, "", f"{nulls} null runs in all; rule {store.rule}.", ""])


def bound(share: float, voices: int) -> float:
    """The largest share that so many independent voices leave possible, at 95 %."""
    return 1.0 if share >= 1 else float(beta.ppf(0.95, share * voices + 1, voices * (1 - share)))


def publish(told: str, start: str, end: str) -> None:
    """Puts a table between its two marks in docs/WORDS.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(start)
    PAGE.write_text(before + start + told + end + rest.split(end)[1], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind, n in (("edits", 20), ("draws", 40), ("exchanged", 50), ("copy", 5)):
        parser.add_argument(f"--{kind}", type=int, default=n, help="of each fine-tune")
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--found", type=Path, default=FOUND)
    given = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(given.found)
    if not given.table:
        for name in given.pairs.split(","):
            hear(store, name, {kind: getattr(given, kind) for kind in ("edits", "draws", "exchanged", "copy")})
    told = table(store)
    print(told)
    if given.found == FOUND:
        publish(told, START, END)


if __name__ == "__main__":
    main()
