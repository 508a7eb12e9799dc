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

So writing all of the base's state into the tuned model breaks exactly D, a share of 1, whatever mass the tuned model gives to tokens of its own:
the run is then the base's law on the shared tokens, and its KL from the tuned model's law there is D. The KL over all tokens (`kl_own_nats`) stays
in the rows, and is never divided by D.
"""

from collections.abc import Collection

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
