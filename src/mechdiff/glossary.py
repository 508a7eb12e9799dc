"""What the words of the page mean, a sentence each, and which words of earlier pages they stand for.

One table for the page (a tooltip where a section first uses a word, and all of them at its end), `mechdiff terms` and docs/GLOSSARY.md.
Keys of tables have their words in `terms`; here are the words themselves.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """One word, or a few that belong together, of the page."""

    name: str
    means: str
    """One sentence."""
    reference: str = ""
    spoken: str = ""
    """How it stands in a text, as a regular expression; empty: as its name."""

    @property
    def pattern(self) -> str:
        return self.spoken or re.escape(self.name)


PATCHING = "Heimersheim & Nanda 2024, arXiv 2404.15255"

WORDS = (
    Word("base model", "The model before the fine-tune.", spoken=r"base model"),
    Word("tuned model", "The model after the fine-tune.", spoken=r"tuned model"),
    Word(
        "D",
        "The KL divergence KL(tuned ‖ base) of the next token's distribution, in nats, averaged over the test prompts.",
        "Kullback & Leibler 1951",
        r"D",
    ),
    Word(
        "KL",
        "The Kullback-Leibler divergence: how far one next-token distribution lies from another; 0 where they are equal.",
        "Kullback & Leibler 1951",
        r"KL(?: divergence)?",
    ),
    Word(
        "nat",
        "The unit of KL divergence and log-probability with natural logarithms: 1 nat is a factor of 2.7 in probability.",
        spoken=r"nats?",
    ),
    Word(
        "Jensen-Shannon divergence",
        "The mean KL of two distributions from their average; symmetric, at most 0.693 nats.",
        "Lin 1991",
        r"Jensen-Shannon(?: divergence)?",
    ),
    Word(
        "95 % CI", "A 95 % confidence interval over prompts, by bootstrap unless the text says otherwise.", "docs/STATISTICS.md", r"95 % CI"
    ),
    Word("cluster", "Prompts made of one template, or of the same text, which count as one in every n and interval.", spoken=r"clusters?"),
    Word(
        "family-wise p",
        "A p value corrected for all tests made together, so that one of them alone rarely falls below 0.05 by chance.",
        "Holm 1979; Westfall & Young 1993",
        r"family-wise p|Holm",
    ),
    Word(
        "permutation null",
        "What a number would be if prompts of the two models were paired at random.",
        spoken=r"permutation null|permuted pairs",
    ),
    Word(
        "optimistically biased",
        "Chosen and measured on the same prompts, so that the number is larger than it would be on new ones.",
        spoken=r"optimistically biased",
    ),
    Word(
        "training, validation and test prompts",
        "Prompts on which maps are fitted, layers and heads are chosen, and results are measured.",
        spoken=r"(?:training|validation|test) prompts?",
    ),
    Word(
        "unrelated prompts",
        "Everyday prompts that the fine-tune was not meant to change; side effects are measured on them.",
        spoken=r"unrelated prompts?",
    ),
    Word(
        "last prompt token",
        "The position whose next token opens the answer; activations are patched there unless the text says otherwise.",
        spoken=r"last prompt token",
    ),
    Word(
        "top-1 token",
        "The most likely next token; top-1 agreement is the share of positions at which both models have the same one.",
        spoken=r"top-1 (?:tokens?|agreement)",
    ),
    Word(
        "numerical noise",
        "How far an unedited run strays from a plain forward pass because of rounding; effects under three times that do not count.",
        spoken=r"numerical noise",
    ),
    Word(
        "residual stream",
        "The vector that each block of a transformer reads and adds its outputs to.",
        "Elhage et al. 2021",
        r"residual stream",
    ),
    Word(
        "activation patching",
        "An activation of one model replaces that of the other at one layer, and the change of the output is measured.",
        PATCHING,
        r"activation patching|[Pp]atch(?:ing|ed|es)?",
    ),
    Word(
        "KL increase",
        "How much of D is lost when an activation of the base model is patched into the tuned model (noising: tests necessity).",
        PATCHING,
        r"KL increase",
    ),
    Word(
        "recovery",
        "How much of D is regained when an activation of the tuned model is patched into the base model (denoising: tests sufficiency).",
        PATCHING,
        r"[Rr]ecover(?:y|s|ed)",
    ),
    Word(
        "way in logits",
        "How far a patch moves the logits along the change from one model's to the other's; such parts add up, parts of KL do not.",
        "docs/STATISTICS.md",
        r"way in logits|of the way",
    ),
    Word(
        "Fisher overlap",
        "The part of a change of the logits that points along the whole change, weighted by the token probabilities.",
        "docs/STATISTICS.md",
        r"Fisher (?:overlap|shares?)",
    ),
    Word(
        "mean difference",
        "The difference of the two models' mean activations, as one constant vector.",
        "Arditi et al. 2024, arXiv 2406.11717",
        r"mean difference",
    ),
    Word("mean ablation", "An activation is replaced by its mean over other prompts.", PATCHING, r"mean ablation"),
    Word(
        "resample ablation",
        "An activation is replaced by that of another prompt.",
        "Chan et al. 2022, causal scrubbing",
        r"resample ablation",
    ),
    Word(
        "weight patching",
        "Tuned weights of one module are copied into the base model (grafting).",
        "Panigrahi et al. 2023, arXiv 2302.06600",
        r"weight patching|[Gg]rafts?|[Gg]rafted",
    ),
    Word(
        "greedy forward selection",
        "Modules or heads are added one at a time, each time the one that helps most.",
        spoken=r"[Gg]reedy forward selection",
    ),
    Word("interaction", "What two parts do together less the sum of what each does alone.", spoken=r"[Ii]nteractions?"),
    Word(
        "CKA",
        "Centred kernel alignment: how alike two sets of activations are in shape, 1 for equal up to rotation and scale; debiased here.",
        "Kornblith et al. 2019; Nguyen et al. 2021",
        r"CKA",
    ),
    Word("Procrustes", "The best rotation of one set of activations onto another.", "Schönemann 1966", r"Procrustes"),
    Word(
        "linear map",
        "A matrix fitted to turn one model's activations into the other's (model stitching).",
        "Bansal et al. 2021, arXiv 2106.07682",
        r"linear maps?",
    ),
    Word(
        "anchored_ridge",
        "A linear map fitted by ridge regression that is pulled towards the identity: where prompts say nothing it changes nothing.",
        "docs/STUDY.md",
    ),
    Word(
        "anchored_procrustes", "The best rotation and scale of the base's activations onto the tuned model's, pulled towards the identity."
    ),
    Word("rrr", "Reduced-rank regression: the best linear map whose change has a given rank.", "Izenman 1975"),
    Word("diag_affine", "A scale and a shift for each dimension alone."),
    Word("shift", "The mean difference of the two models' activations added: one constant vector.", spoken=r"shift"),
    Word("identity", "No map and no edit of what is patched in: the other model's activation as it is.", spoken=r"identity"),
    Word("rank", "Number of independent directions of a matrix or of a change.", spoken=r"rank"),
    Word(
        "stable rank",
        "Squared Frobenius norm over squared largest singular value: an effective number of directions.",
        "Rudelson & Vershynin 2007",
        r"[Ss]table rank",
    ),
    Word(
        "intruder dimensions",
        "Large singular directions of the tuned weights that resemble none of the base model's.",
        "Shuttleworth et al. 2024, arXiv 2410.21228",
        r"intruder dimensions?",
    ),
    Word("LoRA", "An adapter that changes a weight matrix by a product of two thin ones.", "Hu et al. 2021, arXiv 2106.09685", r"LoRA"),
    Word(
        "steering vector",
        "A vector that is added to activations to change behaviour.",
        "Turner et al. 2023, arXiv 2308.10248",
        r"steering vectors?|[Ss]teering",
    ),
    Word(
        "directional ablation",
        "The part of an activation along one direction is removed.",
        "Arditi et al. 2024, arXiv 2406.11717",
        r"directional ablation",
    ),
    Word("perplexity ratio", "Perplexity with an edit over perplexity without; 1 for no change.", spoken=r"[Pp]erplexity(?: ratio)?"),
    Word("head output", "What one attention head adds to the residual stream.", "TransformerLens: hook_result", r"head outputs?"),
    Word("Shapley value", "A head's mean contribution over all orders in which heads can be added.", "Shapley 1953", r"Shapley values?"),
    Word(
        "effective number",
        "The participation ratio (Σm)² / Σm² of the parts' shares m: n for n equal parts, 1 for one alone.",
        spoken=r"[Ee]ffective number",
    ),
    Word(
        "attribution patching",
        "A first-order estimate of a patch: the gradient times the difference of the two activations.",
        "Nanda 2023",
        r"[Aa]ttribution patching",
    ),
    Word(
        "integrated gradients",
        "The gradient averaged along the straight path between the two activations, times their difference.",
        "Sundararajan et al. 2017",
        r"[Ii]ntegrated gradients",
    ),
    Word("self-repair", "Later blocks undo part of what an earlier edit did.", "McGrath et al. 2023, arXiv 2307.15771", r"[Ss]elf-repair"),
    Word(
        "logit lens",
        "An activation read through the final norm and the unembedding, as if it were the last one.",
        "nostalgebraist 2020",
        r"(?:logit )?lens",
    ),
    Word(
        "refusal log-probability margin",
        "The mean log-probability of refusing openings less that of complying ones, per token or per byte.",
        spoken=r"refusal (?:log-probability )?margin",
    ),
    Word("exact match", "Whether the final answer is the right one.", spoken=r"exact match"),
)

_BY_LENGTH = sorted(WORDS, key=lambda one: -len(one.name))
_PATTERN = re.compile("|".join(rf"(?P<w{place}>\b(?:{word.pattern})(?!\w))" for place, word in enumerate(_BY_LENGTH)))


def occurrences(text: str) -> list[tuple[int, int, Word]]:
    """(start, end, word) of every word of the glossary in a text."""
    return [(found.start(), found.end(), _BY_LENGTH[int(str(found.lastgroup)[1:])]) for found in _PATTERN.finditer(text)]


def find(name: str) -> Word | None:
    """The word of that name, or that stands so in a text; None if there is none."""
    return next((one for one in WORDS if one.name.lower() == name.lower() or re.fullmatch(one.pattern, name)), None)


def retired(text: str) -> list[tuple[str, str]]:
    """(what stands there, what is said now) of every retired word in a text."""
    return [(found[0], now) for pattern, now in RETIRED for found in re.finditer(pattern, text)]


RETIRED = (
    (r"\blaws?\b", "distribution"),
    (r"\b[Bb]reakage\b", "KL increase"),
    (r"\bwritten (?:into|in|at|there)\b|\boverwritten\b", "patched into"),
    (r"\bfirst choices?\b", "top-1 token, top-1 agreement"),
    (r"\bdecision position\b", "last prompt token"),
    (r"\b(?:fit|select|report) (?:prompts?|split)\b|\bon select\b", "training, validation, test prompts"),
    (r"\bflattered\b", "optimistically biased"),
    (r"\bneutral (?:prompts?|ones)\b", "unrelated prompts"),
    (r"\b[Nn]oise floors?\b", "numerical noise"),
    (r"\barms?\b", "condition"),
    (r"\bobeys?\b", "steering"),
    (r"\bsoft refusal\b", "refusal log-probability margin"),
    (r"\bhot (?:layers?|and)\b", "selected layers"),
    (r"\bcloser layers?\b|\bcloser look\b", "selected layers"),
    (r"\b[Tt]ransport proper\b|\b[Cc]loseness\b", "recovery by mapped activations, KL with mapped activations"),
    (r"\b(?:can be|cannot be|not|can not be|be) told apart\b", "significantly different"),
    (r"\b4 times in 5\b|\bwould have been seen\b", "minimum detectable difference"),
    (r"\b(?:nats|bits) an? (?:token|byte)\b|\btokens a prompt\b", "nats per token"),
    (r"\bbehind (?:the (?:first token|prompt|template)|its own|a request|a trigger|each other)\b", "after"),
    (r"\bheld against\b", "compared with"),
    (r"\bL\d+\.head[ \u00a0]\d", "L21H5"),
    (r"\b[Gg]radient × difference\b", "attribution patching"),
    (r"\bread before quoting\b", "limitations"),
    (r"\bcounterfactual runs?\b", "patched forward passes"),
    (r"\b[Bb]oth ends hold\b", "checks passed"),
    (r"\bdo the same job\b", "partly redundant"),
    (
        r"\bsame state\b|\b(?:base's|tuned|mean|own|written|activation) states?\b|\bstates? (?:is patched|is written|written|already)\b",
        "activation",
    ),
    (r"\bplaces? of a text\b|\bstrongest places?\b", "position, layer"),
    (r"\bchurn\b", "heads important in one model only"),
)
"""Words of earlier pages, as they stood there, and what is said now. Pages, --help, the terminal and docs are free of them; the keys of study files
and of rows, docs/LOG.md, docs/FAULTS.md and CHANGELOG.md are not."""
