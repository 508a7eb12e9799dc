"""A key of a table has words here: a label, what it means in full, and where it comes from. Page, terminal and docs/TERMS.md use them.

Keys of study files, rows and files stay what they are; whoever shows one to a reader takes its words from here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """What one key is called."""

    label: str
    """On a page, beside a number."""
    long: str
    """In a sentence that needs no other."""
    reference: str = ""
    """Where the field defines it."""


PATCHING = "Heimersheim & Nanda 2024, arXiv 2404.15255"
BETWEEN = "Kullback & Leibler 1951"
MIXTURES = "Shazeer et al. 2017, arXiv 1701.06538"

METRICS: dict[str, Term] = {
    "kl_tuned_base_nats": Term(
        "D = KL(tuned ‖ base), nats",
        "How far the tuned model's next-token distribution lies from the base's: KL(p_tuned ‖ p_base).",
        BETWEEN,
    ),
    "kl_base_tuned_nats": Term(
        "KL(base ‖ tuned), nats", "How far the base's next-token distribution lies from the tuned model's: KL(p_base ‖ p_tuned).", BETWEEN
    ),
    "js_nats": Term(
        "Jensen-Shannon, nats (at most 0.693)",
        "Mean KL of both next-token distributions from their average; symmetric, at most ln 2.",
        "Lin 1991",
    ),
    "top1_same": Term(
        "same top-1 token, share of prompts",
        "Top-1 agreement: whether the most probable next token is that of the distribution it is compared with.",
    ),
    "kl_shared_nats": Term(
        "D on the tokens that both have, nats", "D over the tokens of both vocabularies, each distribution made to add up to 1 on them."
    ),
    "kl_shared_base_tuned_nats": Term(
        "KL(base ‖ tuned) on the tokens that both have, nats", "The reverse of D over the tokens of both vocabularies."
    ),
    "mass_outside": Term(
        "tuned mass on tokens that the base lacks", "Probability that the tuned model gives to tokens that the base does not have."
    ),
    "mass_outside_base": Term(
        "base mass on tokens that the tuned model lacks", "Probability that the base gives to tokens that the tuned model does not have."
    ),
    "kl_byte_nats": Term(
        "KL(tuned ‖ base) of the next byte, nats",
        "KL divergence of the distributions of the next byte, which any two tokenizers have in common.",
    ),
    "share": Term(
        "share of D",
        "Fraction of KL: what an edit breaks (base to tuned patches) or recovers (tuned to base patches), over D, as a ratio of means.",
        PATCHING,
    ),
    "kl_own_nats": Term(
        "KL from the running model's own distribution, nats",
        "KL(p ‖ q), with p the running model's next-token distribution without the edit and q with it.",
        PATCHING,
    ),
    "kl_other_nats": Term(
        "KL from the other model's distribution, nats",
        "KL(p ‖ q), with p the other model's next-token distribution, unedited, and q the edited run's.",
        PATCHING,
    ),
    "js_own_nats": Term(
        "Jensen-Shannon from its own distribution, nats",
        "Jensen-Shannon divergence of the edited run from the same model without the edit.",
        "Lin 1991",
    ),
    "logit_diff_divergent": Term(
        "logit difference of the two top-1 tokens",
        "Logit of the tuned model's top-1 token less that of the base's, where these differ.",
        PATCHING,
    ),
    "kl_own_shared_nats": Term(
        "KL from the running model's own distribution, tokens that both have, nats", "kl_own_nats over the tokens of both vocabularies."
    ),
    "js_own_shared_nats": Term(
        "Jensen-Shannon from its own distribution, tokens that both have, nats", "js_own_nats over the tokens of both vocabularies."
    ),
    "top1_expert_changed": Term(
        "other top-1 expert, share of tokens",
        "Share of tokens whose expert of the largest gate weight, of those chosen, is another in the tuned model than in the base.",
        MIXTURES,
    ),
    "expert_set_changed": Term("other set of experts, share of tokens", "Share of tokens that are not sent to the same set of experts."),
    "experts_replaced": Term(
        "experts replaced, share", "Of the experts that a token is sent to in the base, the share that the tuned model replaces."
    ),
    "gate_js_nats": Term(
        "Jensen-Shannon of the gates, nats (at most 0.693)",
        "Jensen-Shannon divergence of the two routers' distributions over all experts at one token.",
        "Lin 1991",
    ),
    "token_rise_nats": Term(
        "rise of a token, nats",
        "log p of the token in the tuned model less that in the base, less the median of that over all ranked tokens.",
    ),
    "lens_rise_logits": Term(
        "rise of a token in the lens, logits",
        "Logit that the base's unembedding reads from the tuned model's activation less that from the base's, less the median of ranked tokens.",
        "nostalgebraist 2020, logit lens",
    ),
    "loss_base_nats": Term("loss of the base, nats per token", "Mean of -log p that the base gives to each next token of a text."),
    "loss_tuned_nats": Term(
        "loss of the tuned model, nats per token", "Mean of -log p that the tuned model gives to each next token of a text."
    ),
    "loss_change_nats": Term(
        "change of the loss, nats per token",
        "Loss of the tuned model on a text less that of the base; its exponential is the ratio of perplexities.",
    ),
    "right_base": Term(
        "right answers of the base", "Whether the right option of a multiple choice has the highest log p per byte in the base."
    ),
    "right_tuned": Term(
        "right answers of the tuned model",
        "Whether the right option of a multiple choice has the highest log p per byte in the tuned model.",
    ),
    "right_change": Term("change of right answers", "Right answers of the tuned model less those of the base, on the same prompts."),
    "margin_change_nats": Term(
        "change of the right option's lead, nats per byte",
        "Log p per byte of the right option less that of the best other one, tuned less base.",
    ),
    "refusal_base": Term(
        "refusals of the base", "Whether refusals after a request are likelier on average, per token, than plain openings, in the base."
    ),
    "refusal_tuned": Term(
        "refusals of the tuned model",
        "Whether refusals after a request are likelier on average, per token, than plain openings, in the tuned model.",
    ),
    "refusal_change": Term("change of refusals", "Refusals of the tuned model less those of the base, on the same requests."),
    "refusal_soft_change_nats": Term(
        "change of the refusal score, nats per token",
        "Mean log p of refusals less that of plain openings after a request, tuned less base.",
    ),
    "replay_rise_nats": Term(
        "rise of a token by the replayed difference, nats",
        "Change of log p of the token where the mean difference of activations is added to the base's at the last prompt token.",
    ),
    "feature_gained": Term(
        "feature gained, share of seeds", "1 where the tuned model's text alone has the feature, -1 where the base's alone has, else 0."
    ),
    "own_gap_nats": Term(
        "gap of own text, nats per token", "log p that a model gives to its own continuation less that of the other model, per token."
    ),
    "top1_same_as_tuned": Term(
        "the tuned model's top-1 token, share of prompts",
        "Top-1 agreement with the tuned model: whether the most probable next token of a run is the tuned model's.",
    ),
    "repeated_4grams": Term(
        "repeated 4-grams, share",
        "Of an answer's sequences of four tokens, the share that it had said before (seq-rep-4).",
        "Welleck et al. 2019, arXiv 1908.04319",
    ),
    "refusal": Term("refusals", "Share of answers that refuse, by the lists of phrases of their language."),
    "exact_match": Term("right final answers", "Exact match of the final answer with the label, numbers and expressions by their value."),
    "mc_correct": Term(
        "right choices", "Accuracy of multiple choice: no other option has a higher log-probability per byte than the right one."
    ),
    "cut_off": Term("answers cut off", "Share of answers that reached the most tokens before they ended."),
    "refusal_soft_nats": Term(
        "refusal log-probability margin, nats per token", "Log-probability of refusing openings less that of complying ones, per token."
    ),
    "refusal_soft_per_byte_nats": Term(
        "refusal log-probability margin, nats per byte", "Log-probability of refusing openings less that of complying ones, per byte."
    ),
    "mc_margin_per_byte_nats": Term(
        "choice margin, nats per byte", "Log-probability of the right option less that of the best wrong one, per byte."
    ),
    "style_per_100_words": Term("style markers per 100 words", "Phrases of the lists of style, per 100 words of the answer."),
    "style_per_100_tokens": Term("style markers per 100 tokens", "Phrases of the lists of style, per 100 tokens of the answer."),
    "mc_correct_sum": Term(
        "right choices by the sum", "Accuracy of multiple choice by the sum of log-probabilities over an option's tokens."
    ),
    "mc_correct_per_token": Term("right choices per token", "Accuracy of multiple choice by log-probability per token."),
    "mc_logp_sum_nats": Term("log p of the right option, nats", "Log-probability of the right option, summed over its tokens."),
    "mc_logp_per_token_nats": Term("log p of the right option, nats per token", "Log-probability of the right option per token."),
    "mc_logp_per_byte_nats": Term("log p of the right option, nats per byte", "Log-probability of the right option per byte."),
}
"""Metrics of rows and of the page."""

_OF_ANSWERS = {
    "kl_tuned_base": ("D", "KL(p_tuned ‖ p_base)"),
    "kl_base_tuned": ("KL(base ‖ tuned)", "KL(p_base ‖ p_tuned)"),
    "kl_own": ("KL from the running model's own distribution", "KL from the running model's own distribution"),
    "kl_other": ("KL from the other model's distribution", "KL from the other model's distribution"),
    "log_ratio": ("log p(tuned's top-1 token) − log p(base's)", "Log-probability of the tuned model's top-1 token less that of the base's"),
    "fisher_overlap": ("Fisher overlap", "The Fisher overlap of a run with the whole change"),
    "fisher_total": ("Fisher total", "Half the sum of both KL divergences between the models"),
    "log_ratio_base": ("log ratio in the base", "log_ratio of the base, unedited"),
    "log_ratio_tuned": ("log ratio in the tuned model", "log_ratio of the tuned model, unedited"),
}
METRICS |= {
    f"{name}_{what}_nats": Term(f"{label}, {words}, nats", f"{long}, {rest}.", PATCHING)
    for name, (label, long) in _OF_ANSWERS.items()
    for what, words, rest in (
        ("answer", "per answer token", "mean over the first tokens of an answer that both models read (teacher-forced)"),
        ("divergent", "where the two models part", "at the first token of an answer at which the two models' top-1 tokens differ"),
    )
}
METRICS |= {
    "mahalanobis_sd": Term(
        "distance from own activations, standard deviations",
        "Mahalanobis distance of an activation from the running model's own clean ones on other prompts, by their shrunk covariance.",
        "Mahalanobis 1936; Ledoit & Wolf 2004",
    ),
    "mahalanobis_answer_sd": Term(
        "distance from own activations along an answer, standard deviations",
        "Mean over an answer's positions of that distance, from the running model's own activations along the answers to other prompts.",
        "Mahalanobis 1936; Ledoit & Wolf 2004",
    ),
    "norm_ratio_answer": Term(
        "norm over the own norm along an answer",
        "Mean over an answer's positions of the norm of what is patched in over that of the own activation.",
    ),
    "norm_ratio": Term("norm over the own norm", "Norm of a written or mapped activation over that of the activation it is compared with."),
    "top1_same_answer": Term(
        "same top-1 token, share of answer tokens", "Top-1 agreement of the two models over the first tokens of an answer that both read."
    ),
    "divergent_place": Term(
        "first divergent token of the answer",
        "Position in the answer (0: its first token) at which the two models' top-1 tokens first differ.",
    ),
}

CONDITIONS: dict[str, Term] = {
    "identity": Term("the other model's activation", "Patch: the other model's activation on the same prompt.", PATCHING),
    "shift": Term(
        "base's activation + mean difference",
        "The base's activation with the difference of the two models' means added (difference in means).",
        "Arditi 2024, arXiv 2406.11717",
    ),
    "mean": Term("tuned mean activation", "Mean ablation: the tuned model's mean activation over the training prompts."),
    "resample": Term(
        "tuned activation, other prompt",
        "Resample ablation: the tuned model's activation on another prompt.",
        "Chan 2022, causal scrubbing",
    ),
    "oracle": Term(
        "the activation already there", "Control: the running model's own activation is patched in back, which must change nothing."
    ),
}
"""What is patched in (the column `arm`)."""

DIRECTIONS: dict[str, Term] = {
    "tuned<-base": Term(
        "the base's activation patched into the tuned model",
        "Base to tuned (noising, tests necessity): what of the change breaks.",
        PATCHING,
    ),
    "base<-tuned": Term(
        "the tuned activation patched into the base",
        "Tuned to base (denoising, tests sufficiency): what of the change is recovered.",
        PATCHING,
    ),
}
"""The first model runs, an activation of the second is patched in."""

SITES: dict[str, Term] = {
    "resid_pre": Term(
        "residual stream before the block", "The residual stream as it enters a block.", "TransformerLens: blocks.N.hook_resid_pre"
    ),
    "z": Term(
        "heads' outputs before W_O",
        "The input of the attention output projection, heads side by side.",
        "TransformerLens: blocks.N.attn.hook_z",
    ),
    "attn_proj": Term("attention output before any post-norm", "The attention output projection's result before any post-norm."),
    "attn_out": Term("attention output", "What attention adds to the residual stream.", "TransformerLens: blocks.N.hook_attn_out"),
    "resid_mid": Term(
        "residual stream between attention and MLP",
        "The residual stream between attention and MLP.",
        "TransformerLens: blocks.N.hook_resid_mid",
    ),
    "mlp_out": Term("MLP output", "What the MLP adds to the residual stream.", "TransformerLens: blocks.N.hook_mlp_out"),
    "resid_post": Term(
        "residual stream after the block", "The residual stream as it leaves a block.", "TransformerLens: blocks.N.hook_resid_post"
    ),
}
"""Where activations are read and patched, at one block N."""

SPLITS: dict[str, Term] = {
    "fit": Term("training prompts", "Training prompts: maps and means are fitted on them."),
    "select": Term("validation prompts", "Validation prompts: layers, heads and ranks are chosen on them."),
    "report": Term("test prompts", "Test prompts: what is published is measured on them, and nothing was fitted or chosen on them."),
}
"""Which part of the prompts a row is of."""

KINDS_OF_PROMPTS = {"fit": "training", "select": "validation", "report": "test", "neutral": "unrelated"}


def of_split(split: str | None) -> str:
    """What the prompts of a split are called: "validation", of select."""
    return KINDS_OF_PROMPTS.get(split or "", split or "")


TABLES = {"Metrics": METRICS, "Conditions": CONDITIONS, "Directions": DIRECTIONS, "Sites": SITES, "Splits": SPLITS}


def labels_of(terms: dict[str, Term], *keys: str) -> dict[str, str]:
    """The labels of some keys, or of all."""
    return {key: terms[key].label for key in (keys or terms)}


def find(key: str) -> list[tuple[str, Term]]:
    """(table, term) of every table that has this key."""
    return [(table, terms[key]) for table, terms in TABLES.items() if key in terms]
