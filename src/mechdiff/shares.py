"""What is a share of D a share of? The one place that pairs the metric above the line of a share with the one below it. No torch here.

A share is a ratio of two divergences, and both are taken on the same tokens. Where the two vocabularies are one, these are all tokens. Where they
differ, D over all tokens is infinite as soon as the tuned model says a token that the base lacks. Then every law in a share is cut to the tokens
that both models have, and renormalised, above the line as well as below it:

                                  one vocabulary         two vocabularies
    D                             kl_tuned_base_nats     kl_shared_nats
    its reverse                   kl_base_tuned_nats     kl_shared_base_tuned_nats
    what a write breaks           kl_own_nats            kl_own_shared_nats
    how far from the other        kl_other_nats          kl_other_nats, which is always on the shared tokens
    how far it moved, by JS       js_own_nats            js_own_shared_nats

The first token of an answer is not the answer. Beside the decision position every metric of a run has two relatives, both on the tokens that both
models have: its mean over the positions of an answer that both models read (`kl_own_answer_nats`), and its value at the first of these positions
where their top-1 tokens differ (`kl_own_divergent_nats`). The line below a share is then D over the same positions (`kl_tuned_base_answer_nats`).

A study may read both models' answers. What is scored over the base's then ends in `_of_base` before its unit (`kl_own_answer_of_base_nats`), and in
all else is what it would be if the base's answers alone were read (`answers_of`).

So writing all of the base's state into the tuned model breaks exactly D, a share of 1, whatever mass the tuned model gives to tokens of its own:
the run is then the base's law on the shared tokens, and its KL from the tuned model's law there is D. The KL over all tokens (`kl_own_nats`) stays
in the rows, and is never divided by D.
"""

import re
from collections.abc import Collection

import polars as pl

from mechdiff.labels import runner
from mechdiff.rows import OVERLAP

OF_THE_PAIR = "divergence"
"""The measure whose rows are of the two models themselves, unedited: what everything else is a share of."""

BETWEEN = {"base": ("kl_tuned_base_nats", "kl_shared_nats"), "tuned": ("kl_base_tuned_nats", "kl_shared_base_tuned_nats")}
"""What `kl_other_nats` of the unedited run is, by the model that runs: of one vocabulary, of two. The base's is D."""

OWN = ("kl_own_nats", "kl_own_shared_nats")
"""How far a run is from the running model's own law."""

OWN_JS = ("js_own_nats", "js_own_shared_nats")

OTHER = "kl_other_nats"
"""How far a run is from the other model's law, always on the tokens that both have."""


ANSWER, DIVERGENT = OVER = ("answer", "divergent")
"""What a metric is of where it is not of the decision position: the mean over an answer's positions, and the first one where the two models part."""

LOG_RATIO = "log_ratio_nats"
"""log p(the tuned model's top-1 token) - log p(the base's), 0 where they are one: over an answer."""


def over(metric: str, what: str) -> str:
    """The relative of a metric of the decision position over an answer, or at its divergent position (`what`: one of OVER)."""
    name = {"kl_own_shared_nats": "kl_own_nats", "logit_diff_divergent": LOG_RATIO, "kl_shared_nats": "kl_tuned_base_nats"}.get(
        metric, metric
    )
    return name.removesuffix("_nats") + f"_{what}" + "_nats" * name.endswith("_nats")


OF_ANSWERS = tuple(over(name, what) for what in OVER for name in ("kl_own_nats", OTHER, LOG_RATIO, OVERLAP))
"""What an edited run is scored by over an answer."""


_OVER = r"(_(?:answer|divergent))(_nats|_logits|_sd)$|^(top1_same_answer|divergent_place|norm_ratio_answer)$"
_OF_BASE = r"_of_base(_nats|_logits|_sd)?$"


def over_base(metric: str) -> str | None:
    """The same metric over an answer of a study that reads one model's answers; None for one that is not over the base's of two."""
    return re.sub(_OF_BASE, r"\1", metric) if re.search(_OF_BASE, metric) else None


def as_of_base(table: pl.DataFrame) -> pl.DataFrame:
    """Rows, or lines of a summary, of a study that reads the base's answers, as they stand in one that reads both: those over answers."""
    metric = pl.col("metric").str.replace(_OVER, "${1}${3}_of_base${2}")
    return table.filter(is_over_answer()).with_columns(metric)


def answers_of(table: pl.DataFrame, side: str) -> pl.DataFrame:
    """Rows, or lines of a summary, as if of two models' answers one's alone had been read. What is over no answer is as it was."""
    of_base = pl.col("metric").str.contains(_OF_BASE)
    if side == "tuned":
        return table.filter(~of_base)
    kept = table.filter(of_base | ~is_over_answer())
    return kept.with_columns(pl.col("metric").str.replace(_OF_BASE, "${1}"))


def is_over_answer() -> pl.Expr:
    """Whether a metric is over an answer, or at its divergent position."""
    return pl.col("metric").str.contains(_OVER)


def both_answers(table: pl.DataFrame) -> bool:
    """Whether rows, or lines of a summary, are over both models' answers."""
    return bool(table.select(pl.col("metric").str.contains(_OF_BASE).any()).item())


def on_shared(metrics: Collection[str]) -> bool:
    """Whether a run that has these metrics is of two vocabularies."""
    return BETWEEN["base"][1] in metrics


def total(runner: str, *, shared: bool, what: str | None = None) -> str:
    """The metric below the line: `base` is D, also of breakage; `tuned` its reverse, of which the way back (tuned<-tuned) is a share.

    `what`: one of OVER; None: of the decision position.
    """
    return over(BETWEEN[runner][0], what) if what else BETWEEN[runner][shared]


def own(*, shared: bool, what: str | None = None) -> str:
    """How far a run moved from the running model's own law, as it stands above the line."""
    return over(OWN[0], what) if what else OWN[shared]


def own_js(*, shared: bool) -> str:
    return OWN_JS[shared]


def effect(direction: str, *, shared: bool, what: str | None = None) -> str:
    """The metric whose share of D says what a write does: what it breaks where the tuned model runs, what is left of D where the base does."""
    return own(shared=shared, what=what) if runner(direction) == "tuned" else over(OTHER, what) if what else OTHER


def refuse_two_supports(above: Collection[str], below: Collection[str]) -> None:
    """Asserts that what a share divides is on the tokens of what it is divided by; `above` and `below` are the metrics of the rows."""
    divisors = set(below)
    for shared in (False, True):
        if divisors & {names[shared] for names in BETWEEN.values()}:
            wrong = set(above) & {OWN[not shared], OWN_JS[not shared]}
            assert not wrong, f"{sorted(wrong)} and {sorted(divisors)} are not of the same tokens: their ratio is no share"
