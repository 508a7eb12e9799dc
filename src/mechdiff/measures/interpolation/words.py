"""The page's sentences say at which strength half of D is gone, and whether the change grows or breaks beyond the tuned model."""

import math

from mechdiff import labels
from mechdiff.measures.interpolation import findings
from mechdiff.measures.interpolation.findings import Beyond, Number
from mechdiff.measures.interpolation.plan import LOGITS, STATES, WEIGHTS
from mechdiff.report import spoken
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import nats, plain, share, with_interval

NAMES = {WEIGHTS: "weights", LOGITS: "logits", STATES: "activations"}
NEUTRAL = "unrelated prompts"
SPOKEN = 3
"""Groups of modules that sentences speak of."""


def lead(run: Run) -> list[str]:
    """Where half of D is gone, what activations cost, and what lies beyond."""
    return [*halves(run), *activations(run), *of_modules(run), *further(run)]


def halves(run: Run) -> list[str]:
    """One sentence of all forms that get there."""
    found = {form: findings.half(run.rows, form) for form in findings.forms(run.rows)}
    said = [f"{_strength(one)} by {NAMES[form]}" for form, one in found.items() if one and math.isfinite(one.value)]
    never = [NAMES[form] for form, one in found.items() if one and not math.isfinite(one.value)]
    sentences = [f"Half of D is gone at strength {', at '.join(said)} (0: the base, 1: the tuned model)."] if said else []
    return [*sentences, *(f"By {name} no strength that was run takes off half of D." for name in never)]


def _strength(one: Number) -> str:
    return with_interval(one.value, one.low, one.high, decimals=2, coverage=1.0)


def activations(run: Run) -> list[str]:
    """What activations leave of D where they move neutral prompts as the tuned model does."""
    one = next((one for one in findings.matched(run.rows) if one.form == STATES and one.weights == 1), None)
    if one is None:
        return []
    layer = (run.manifest.get("interpolation") or {}).get("layer")
    where = f"Activations moved at the output of block {layer}" if layer is not None else "Activations"
    if not math.isfinite(one.strength.value):
        return [f"{where} never move {NEUTRAL} as far as the tuned model does ({nats(one.neutral)} nats), at no strength that was run."]
    left = with_interval(one.left.value, one.left.low, one.left.high, coverage=1.0)
    cost = f"move {NEUTRAL} as far as the tuned model does ({nats(one.neutral)} nats) at strength {_strength(one.strength)}"
    return [f"{where} {cost}, and leave {left} nats of D."]


def of_modules(run: Run) -> list[str]:
    """What the weights of some modules alone leave of D, as in the tuned model and enlarged."""
    found = findings.alone(run.rows)
    said = []
    for one in found[:SPOKEN]:
        text = f"The weights of {named(run, one.unit)} alone leave {_nats(one.at_one)} nats of D at strength 1"
        if one.strength > 1:
            text += f", and {_nats(one.beyond)} at {plain(one.strength)} (difference {_nats(one.less)}; {spoken.in_words(one.p)}"
            text += ")" if len(found) == 1 else f", corrected for {len(found)} groups)"
        said.append(f"{text}.")
    return said


def named(run: Run, group: str) -> str:
    """A group of modules, with what moves along with it, or stays, where embedding and unembedding are one tensor."""
    parts = labels.set_of(group)
    if not (run.manifest.get("interpolation") or {}).get("tied") or not {"embed", "head"} & set(parts):
        return group
    return f"{group} ({'the unembedding moves with it' if 'embed' in parts else 'head is the embedding here and stays'}: one tied tensor)"


def _nats(one: Number) -> str:
    return with_interval(one.value, one.low, one.high)


def further(run: Run) -> list[str]:
    """Whether the run goes on beyond the tuned model, on report and on neutral prompts, and what its answers repeat."""
    found = {split: findings.beyond(run.rows, split) for split in ("report", "neutral")}
    said = [f"{_beyond(one)} on {NEUTRAL if split == 'neutral' else 'the test prompts'}" for split, one in found.items() if one]
    strength = next((one.strength for one in found.values() if one), None)
    if strength is None:
        return []
    return [f"Weights at {plain(strength)} times the change: {'; '.join(said)}{_loops(run)}."]


def _beyond(one: Beyond) -> str:
    sizes = f"KL(base ‖ run) {with_interval(one.here.value, one.here.low, one.here.high)} nats, {nats(one.tuned)} at strength 1"
    if math.isnan(one.p):
        return sizes
    word = (
        "further from the base than the tuned model"
        if one.grows
        else "no further from the base than the tuned model, as far as can be told"
    )
    return f"{word} ({sizes}; {spoken.in_words(one.p)})"


def _loops(run: Run) -> str:
    found = findings.loops(run.rows)
    if not found:
        return ""
    said = ", ".join(f"{share(part)} at {plain(strength)}" for strength, part, _ in found)
    return f". Share of 4-grams that an answer repeats, mean of {found[0][2]}: {said}"
