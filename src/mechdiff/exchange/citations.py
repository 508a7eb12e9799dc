"""What a paper cites for the methods that a run used: a sentence and BibTeX a measure, for those that were measured alone.

The sentences say what mechdiff computes (the measures' own docstrings have the formulas); the entries, in data/references.bib, are the papers that
they follow.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "divergence": (
        "The two models' next-token distributions were compared by KL(tuned ‖ base) in nats",
        (),
    ),
    "weights": (
        "Changes of the weights were measured from the files: relative Frobenius norm, spectrum and rank of each matrix's change",
        ("hu2022lora",),
    ),
    "grafting": (
        "Modules were grafted: one module's tuned weights put into the base model",
        ("panigrahi2023skill",),
    ),
    "similarity": (
        "Activations were compared by debiased linear CKA, with nulls from permuted prompts",
        ("kornblith2019similarity", "nguyen2021wide"),
    ),
    "patching": (
        "Activations were patched between the two models in both directions, with means, mean differences and other prompts' activations as controls",
        ("zhang2024patching", "heimersheim2024patching", "prakash2024finetuning"),
    ),
    "self_repair": (
        "Direct effects of patched outputs were separated from what later blocks undo",
        ("mcgrath2023hydra",),
    ),
    "factorial": (
        "Lower and upper halves of the two networks were crossed in a 2 x 2 design",
        (),
    ),
    "transport": (
        "Linear maps between the two models' activations were fitted on training prompts and written on test prompts",
        ("bansal2021stitching", "maiorca2023latent"),
    ),
    "rank": (
        "The change's rank was estimated by cross-validated reduced-rank regression",
        ("izenman1975reduced",),
    ),
    "steering": (
        "Directions of the change were added, amplified and removed, with random directions of the same size as controls",
        ("turner2023activation", "arditi2024refusal"),
    ),
    "interpolation": (
        "Weights, logits and activations were interpolated between the two models and beyond",
        ("ilharco2023editing",),
    ),
    "heads": (
        "Attention heads' contributions were exchanged one by one and in sets, with Shapley values",
        ("shapley1953value",),
    ),
    "attribution": (
        "Effects of heads were estimated by attribution patching and integrated gradients, and compared with true patches",
        ("nanda2023attribution", "sundararajan2017axiomatic"),
    ),
    "behaviour": (
        "Both models' greedy answers were compared, phrases by log-odds with a Dirichlet prior",
        ("monroe2008fightin",),
    ),
    "panel": (
        "Side effects were measured on the shipped panel of unrelated texts and prompts",
        (),
    ),
    "words": (
        "What the tuned model was taught was read from both models' logit lens and from amplified differences",
        ("nostalgebraist2020logit",),
    ),
}
"""By measure: what was done, in words, and what is cited for it."""
STATISTICS = ("efron1993introduction", "wilson1927probable", "mcnemar1947note", "holm1979simple", "westfall1993resampling")
REFERENCES = Path(__file__).parents[1] / "data" / "references.bib"


@cache
def entries() -> dict[str, str]:
    """Every BibTeX entry that ships, by key."""
    text = REFERENCES.read_text(encoding="utf-8")
    return {found[1]: found[0] for found in re.finditer(r"@\w+\{(\w+),\n.*?\n\}\n", text, re.DOTALL)}


def bibtex(keys: Iterable[str], version: str) -> str:
    """The entries of these keys, and mechdiff's own (as CITATION.cff has it), for a .bib file."""
    own = (
        "@misc{mechdiff,\n  author = {{The mechdiff developers}},\n  title = {mechdiff: what did a fine-tune change inside a language model, where, "
        f"and does it matter?}},\n  note = {{Software, version {version}}}\n}}\n"
    )
    return "\n".join([own, *(entries()[key] for key in dict.fromkeys(keys))])
