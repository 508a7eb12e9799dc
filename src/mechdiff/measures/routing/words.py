"""The page's sentences say what share of tokens goes to another expert, and whether the routers or what they are given moves them."""

from mechdiff import terms
from mechdiff.measures.grafting.words import BIASED
from mechdiff.measures.routing import findings
from mechdiff.measures.routing.findings import Moved
from mechdiff.report import spoken
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import share, with_interval

SURE = 0.05


def lead(run: Run) -> list[str]:
    """The layer at which most tokens move, and what moves them; nothing where the interval holds 0."""
    found = findings.most_moved(run.rows)
    return [] if found is None or not found.low > 0 else [f"{_most(found)}{_by_what(found)}."]


def clause(run: Run) -> list[Candidate]:
    """The same without what moves them."""
    found = findings.most_moved(run.rows)
    return [] if found is None else [Candidate(text=_short(found), n=found.n, tested=found.low > 0)]


def _size(found: Moved) -> str:
    return with_interval(found.share, found.low, found.high, digits=2, coverage=1.0)


def _most(found: Moved) -> str:
    return f"At layer {found.layer} ({how_chosen(found)}) a share of {_size(found)} of the tokens goes to another top-1 expert"


def _short(found: Moved) -> str:
    chosen = "selected on other prompts" if found.chosen_on else BIASED
    return f"at layer {found.layer} ({chosen}) {_size(found)} of the tokens go to another top-1 expert"


def how_chosen(found: Moved) -> str:
    """How the layer was chosen, and what the interval is of."""
    if found.chosen_on:
        return f"selected on the {terms.of_split(found.chosen_on)} prompts, {found.n} others"
    return f"the most of {found.candidates} layers, {BIASED}; the interval is a band over all of them"


def _by_what(found: Moved) -> str:
    """What the tuned inputs and the tuned router move alone; which moves more only where a test says so."""
    if found.inputs is None or found.weights is None:
        return ""
    alone = f"the base's router on the tuned model's inputs moves {share(found.inputs)}, the tuned router on the base's inputs {share(found.weights)}"
    if found.p <= SURE:
        more = "what reaches the router" if found.inputs > found.weights else "the router's own change"
        return f"; {alone}: {more} moves more ({spoken.in_words(found.p)})"
    return f"; {alone}"
