"""A language model of the user's reads the evidence blind, several times over, and its answers are held against each other.

It is never needed and never asked unless an address is given: any server that speaks OpenAI's chat completions, one on this machine included.
Each run sees the same lines in another order, and the two models as A and B or as B and A at random; no model is named, and the question does not
presuppose that anything was taught. Answers contradict where one says nothing and the other something, or where both say something and lean on no
line in common. Of answers that contradict at most one is right: so with k runs, of which no more than m go together, at least 1 - m / k are wrong.
"""

import itertools
import json
import random
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mechdiff.errors import RunError
from mechdiff.measures.words import findings
from mechdiff.measures.words.grade import is_silent

RUNS = 5
LINES, TEXTS = 30, 3
"""That are shown, the largest beside what null pairs show first."""
SECONDS = 300
QUESTION = """Two language models, A and B, read the same texts. Below are lines of evidence on how they differ, in no order, and some of their texts.
A line says which model has more of something, on texts that were held out. `size` is how large the difference is, `bar` how large it must be to
exceed what pairs of equal models show, q the share of such lines that chance would give.
What, if anything, does one of them do that the other does not? Many such pairs differ in nothing that can be named: "Nothing" is a full answer.
Answer in one sentence. Then write, on a line of its own, "Lines:" and the numbers of the lines that carry your answer."""

AMPLIFIED = """Some lines are of amplified texts: not what either model says by itself, but what comes out where at every token the logits z of
one are moved away from the other's, to z + a (z - z_other), among its likelier tokens alone. They stand beside the other model's text, drawn from its
likelier tokens alone as well. Such a line shows a tendency, which the model's own texts need not show."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one run said."""

    text: str
    silent: bool
    lines: tuple[int, ...]
    """The lines that it leans on, by their place among those that were shown to all runs."""
    tuned_is: str
    """A or B."""
    raw: str


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What all runs said."""

    model: str
    answers: tuple[Answer, ...]
    contradictions: int
    """Pairs of runs that contradict each other."""
    together: int
    """The most runs of which no two contradict."""

    @property
    def wrong(self) -> float:
        """The least share of the answers that is wrong."""
        return 1 - self.together / len(self.answers)

    def told(self) -> dict[str, Any]:
        return {**asdict(self), "wrong_at_least": self.wrong}


def read(manifest: Mapping[str, Any], url: str, *, model: str, runs: int = RUNS, key: str = "") -> Readings:
    """Asks the server at `url` (".../v1") so many times. `key`: sent as a bearer token where there is one."""
    if not re.match(r"https?://", url):
        raise RunError(f"--reader {url}: expected an address that begins with http:// or https://, such as http://localhost:8080/v1.")
    lines, texts = shown(manifest)
    answers = tuple(_asked(lines, texts, number, url, model, key) for number in range(runs))
    apart = {pair for pair in itertools.combinations(range(runs), 2) if contradict(*(answers[i] for i in pair))}
    return Readings(model=model, answers=answers, contradictions=len(apart), together=_together(runs, apart))


def shown(manifest: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines that are largest beside what null pairs show, and the continuations that stand apart."""
    lines = sorted((findings.record(manifest) or {})["lines"], key=lambda one: -one["size"] / max(one["least"], 1e-9))
    return lines[:LINES], findings.ranked(manifest)[:TEXTS]


def contradict(one: Answer, other: Answer) -> bool:
    if one.silent or other.silent:
        return one.silent != other.silent
    return not set(one.lines) & set(other.lines)


def _together(n: int, apart: set[tuple[int, int]]) -> int:
    """The largest set of runs in which no two contradict."""
    sets = (chosen for size in range(n, 0, -1) for chosen in itertools.combinations(range(n), size))
    return len(next(chosen for chosen in sets if not apart & set(itertools.combinations(chosen, 2))))


# ---- one run -----------------------------------------------------------------------------------------------------------------------


def _asked(lines: Sequence[Mapping[str, Any]], texts: Sequence[Mapping[str, Any]], number: int, url: str, model: str, key: str) -> Answer:
    draw = random.Random(f"reader {number}")
    order, names = list(range(len(lines))), draw.choice(({"base": "A", "tuned": "B"}, {"base": "B", "tuned": "A"}))
    draw.shuffle(order)
    told = [f"{place}. {_line(lines[one], names)}" for place, one in enumerate(order, 1)]
    for one in texts:
        said = sorted((names[side], one[side]) for side in ("base", "tuned"))
        told.append("\n".join([f"\nText: {one['text']}", *(f"{name} goes on: {text}" for name, text in said)]))
    asked = f"{QUESTION}\n{AMPLIFIED}" if any(map(findings.strength_of, lines)) else QUESTION
    raw = _reply(url, model, key, f"{asked}\n\n" + "\n".join(told or ["There is no line of evidence."]))
    text, _, cited = raw.partition("Lines:")
    places = [int(one) for one in re.findall(r"\d+", cited)]
    leans = tuple(sorted({order[place - 1] for place in places if 0 < place <= len(order)}))
    return Answer(text=text.strip(), silent=is_silent(text), lines=leans, tuned_is=names["tuned"], raw=raw)


def _line(line: Mapping[str, Any], names: Mapping[str, str]) -> str:
    numbers = f"size {line['size']:.2f}, bar {line['least']:.2f}, q {line['q']:.3f}"
    if strength := findings.strength_of(line):
        ours, theirs, often = names["tuned"], names["base"], "more" if line["gained"] else "less"
        on = line["where"].partition(", ")[0]
        return f"Amplified, {ours} away from {theirs} by {strength}: the text {often} often {line['text']} than {theirs}'s (on {on}; {numbers})"
    more = names["tuned" if line["gained"] else "base"]
    what = f"its text {line['text']}" if line["reader"] == "continuations" else f"the token {json.dumps(line['text'], ensure_ascii=False)}"
    return f"{more} has more of: {what} (on {line['where']}; {numbers})"


def _reply(url: str, model: str, key: str, prompt: str) -> str:
    asked = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}]}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", data=asked, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return str(json.loads(answer.read())["choices"][0]["message"]["content"])
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise RunError(f"--reader {url}: it does not answer ({error}). Start the server, or give another address.") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RunError(
            f"--reader {url}: its answer is no chat completion ({error!r}). Give a server that speaks OpenAI's protocol."
        ) from error
