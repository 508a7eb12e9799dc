"""Divergences are computed once more from whole forward passes."""

import math
from typing import Any

from mechdiff import labels
from mechdiff.audit import answers, whole
from mechdiff.audit.distributions import NotRecomputed, Row, between
from mechdiff.audit.rerun import Rerun
from mechdiff.engine.generation import stop_ids
from mechdiff.measures.divergence.plan import DivergenceOptions
from mechdiff.models.pair import Model

# ---- measures --------------------------------------------------------------------------------------------------------------------------


def again(run: Rerun, row: Row) -> float:
    """The two models' laws at the decision position, and at every token of a text that both read."""
    split, prompt, unit, metric = row["split"], row["prompt"], row["unit"], row["metric"]
    if metric.startswith("tokens_per_"):
        _, _, what, side = metric.split("_")
        text = run.prepared.rendered[split][prompt].prompt.text
        n_tokens = len(run.prepared.pair.tokenizer(side)(text, add_special_tokens=False)["input_ids"])
        return n_tokens / (len(text.encode()) if what == "byte" else len(text.split()))
    if answers.what_of(metric):
        return answers.of_pair(run, row)
    if unit is None and not metric.startswith(("bits_per_byte", "first_divergence")):
        return between(run, metric, run.law("base", split, prompt), run.law("tuned", split, prompt))
    base, tuned = _texts(run, split, prompt)
    if unit is not None:
        place = labels.token_of(unit)
        return between(run, metric, base["laws"][place], tuned["laws"][place])
    decision = len(run.ids("tuned", split, prompt)) - 1
    if metric == "first_divergence":
        apart = [i for i in range(decision, len(tuned["laws"])) if int(base["laws"][i].argmax()) != int(tuned["laws"][i].argmax())]
        return float(apart[0]) if apart else math.nan
    one = base if metric.endswith("base") else tuned
    said = tuned["said"]
    total = sum(-float(one["laws"][decision + i].log_softmax(-1)[token]) for i, token in enumerate(said))
    n_bytes = sum(map(len, run.prepared.vocabularies["tuned"].spelled(said)))
    return total / math.log(2) / n_bytes if n_bytes else math.nan


def _texts(run: Rerun, split: str, prompt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both models' laws after each token of the prompt and of what the tuned model says next, by itself."""
    if not run.prepared.tokens.all_shared or run.ids("base", split, prompt) != run.ids("tuned", split, prompt):
        raise NotRecomputed("texts of two tokenizers are aligned by the run's own code")
    key = ("text", split, prompt)
    if key not in run.cached:
        options = run.prepared.study.asked(DivergenceOptions)
        ids = list(run.ids("tuned", split, prompt))
        said: list[int] = []
        with run.model("tuned") as model:
            ends = text_ends(run, model)
            for _ in range(options.continuation if options else 0):
                token = int(whole.logits(model, [*ids, *said]).argmax())
                if token in ends:
                    break
                said.append(token)
        read = [*ids, *said][: max(len(ids), len(ids) + len(said) - 1)]
        found = []
        for side in ("base", "tuned"):
            with run.model(side) as model:
                found.append({"laws": whole.logits(model, read, everywhere=True), "said": said})
        run.cached[key] = tuple(found)
    return run.cached[key]


def text_ends(run: Rerun, model: Model) -> frozenset[int]:
    return stop_ids(model, run.prepared.pair.tokenizer(model.side), run.prepared.tokenizers())
