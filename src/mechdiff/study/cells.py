"""A study is cut into cells, its prompts into shards that run side by side. Words for positions are here too. No torch here.

A cell is what is stored, and what a killed run can lose at most one of. Its key says *what* it holds (measure, direction, split, site kind,
arm, which prompts of which models), never how far a run has come: so packing is a function of the plan alone, and a resumed run makes the
same passes and gives the same bits.

Prompts are packed in *shards*: neighbours in length whose variants run side by side in one pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TEXT_TOKENS = 10
"""Of an opening or an option, where no tokenizer has said."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt as the plan sees it."""

    id: str
    sha256: str
    """Of what the models read."""
    tokens: int
    """In the model that cuts it into fewer."""
    longest: int = 0
    """In the model that cuts it into more."""
    pairs: int
    """Places where both models have read the same bytes."""
    tail: int
    """Last tokens that are the same places for both models, one by one; all of them where both cut the prompt alike."""
    kind: str | None = None
    """What its `meta` says it is."""
    told: str = ""
    """Hash of what comes with it: label, options, meta."""
    options: int = 0
    """Answers to choose from."""
    label: bool = False
    """Whether it has a right answer."""
    room: bool = True
    """Whether every text that behaviour scores has room behind it."""
    text_tokens: float = TEXT_TOKENS
    """Of such a text, on average."""
    cluster: str | None = None
    """The name of the prompts that say the same as it; None where that is not known yet."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One unit of work and of storage."""

    stage: str
    """Names what computes it: see `experiment.Stage`."""
    key: dict[str, Any]
    """What it is: the content address of its result. Every value is also an argument of the stage's function."""
    items: tuple[Item, ...]
    side: str | None
    """The model that must run; None: the captured states are enough."""
    flops: float
    steps: int = 0
    """Passes of one token for each of some sequences: what is said side by side."""

    @property
    def title(self) -> str:
        """A few words for a progress bar."""
        words = [self.stage, self.side if self.stage == "capture" else self.key.get("direction"), self.key.get("kind"), self.key.get("arm")]
        return " ".join(str(word) for word in words if word)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Cells in the order in which they run, what is left out and why, and what the rest will take."""

    cells: tuple[Cell, ...]
    skipped: tuple[dict[str, str], ...]
    weights_bytes: int
    """Both models; one, where tuned is an adapter that is switched on and off on base."""
    shared_weights: bool
    states_bytes: int
    """Captured states and logits, on disk and at most in memory."""
    pass_bytes: int
    """The largest replayed pass: logits and what is computed on them."""

    @property
    def replayed(self) -> int:
        """Counterfactual runs: one edit, one prompt."""
        return sum(cell.key["n_variants"] * len(cell.items) for cell in self.cells if "n_variants" in cell.key)

    @property
    def flops(self) -> float:
        return sum(cell.flops for cell in self.cells)


def shards(items: Sequence[Item], n_variants: int, n_pos: int | None, max_rows: int) -> list[tuple[Item, ...]]:
    """Prompts sorted by length, in groups whose variants fit into one pass; `n_pos` None (all positions): one prompt each."""
    by_length = sorted(items, key=lambda item: (item.tokens, item.id))
    size = 1 if n_pos is None else max(1, max_rows // ((n_variants + 1) * n_pos))
    n_groups = -(-len(by_length) // size)
    return [tuple(by_length[i * len(by_length) // n_groups : (i + 1) * len(by_length) // n_groups]) for i in range(n_groups)]
