"""The verdict has at most five sentences, one for each question of a study, each computed from the run's tables and true of them.

1. Do they behave differently?  2. Which weights changed, and which module's change matters?  3. Where does it matter?
4. Can a map carry it, how many dimensions has it, does it obey?  5. Which heads carry it?

Every clause is a candidate, and only those that pass all gates of `headlines` are spoken. Where D is not above the noise floor there is no effect to
take shares of: then the first two are all there is. What each measure found beside this stands at the head of its section (`wording.leads`).
"""

from collections.abc import Sequence

import polars as pl

from mechdiff.measures.behaviour import words as behaviour_words
from mechdiff.measures.divergence import words as divergence_words
from mechdiff.measures.grafting import words as grafting_words
from mechdiff.measures.heads import words as heads_words
from mechdiff.measures.patching import constant as patching_constant
from mechdiff.measures.patching import findings as patching_findings
from mechdiff.measures.patching import words as patching_words
from mechdiff.measures.transport.words import can_it_be_carried
from mechdiff.measures.weights import findings as weights_findings
from mechdiff.measures.weights import words as weights_words
from mechdiff.report import difference, headlines, spoken
from mechdiff.report.difference import BREAKAGE, RECOVERY, Difference
from mechdiff.report.headlines import Candidate
from mechdiff.report.phrasing import nats


def verdict(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """At most five sentences with their intervals; fewer where measures were left out, or where there is no effect to explain."""
    with spoken.in_measured_words(rows):
        said = [sentence for clauses in candidates(rows, summary, manifest) if (sentence := headlines.sentence(clauses))]
    first = next((place for place, sentence in enumerate(said) if headlines.INTERVAL.search(sentence)), None)
    return [headlines.INTERVAL.sub(r"[95 % CI: \1]", one, count=1) if place == first else one for place, one in enumerate(said)]


def refused(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """What might have stood in the verdict and did not pass a gate, each with its reason."""
    return [text for clauses in candidates(rows, summary, manifest) for text in headlines.refused(clauses)]


def candidates(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[list[Candidate]]:
    """What might be said, a list for each of the five sentences."""
    found = difference.difference(rows, summary)
    said: list[Sequence[Candidate | str]] = [_behaviour(rows, manifest, found), _weights(rows, summary, manifest, found)]
    if found is None or found.divides:
        said += [_where(rows, summary), can_it_be_carried(rows, summary, manifest), heads_words.headlines(rows, summary, manifest)]
    return [[Candidate(text=one) if isinstance(one, str) else one for one in clauses] for clauses in said]


def _behaviour(rows: pl.DataFrame, manifest: dict, found: Difference | None) -> list[Candidate]:
    """D, and every difference between the answers that is seen; what was looked for and not seen stands in its section."""
    told = Candidate(text=divergence_words.how_different(found, manifest), n=None if found is None else found.n, needed=1)
    return [told, *behaviour_words.headlines(rows, manifest)]


def _weights(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict, found: Difference | None) -> list[Candidate]:
    """How much of the network changed, and the module whose tuned weights alone go furthest."""
    changed = weights_findings.how_many(summary)
    said = []
    if changed is not None and not changed.changed:
        return [Candidate(text=weights_findings.unchanged(changed, manifest))]
    if changed is not None:
        top = weights_findings.tensors(summary).row(0, named=True)
        most = f"{weights_findings.short_tensor(top['unit'])}, by {nats(top['relative_norm'])} of its norm"
        of_rank = f", rank {top['numerical_rank']:.0f}" if top.get("numerical_rank") else ""
        layers = f"in {changed.layers_changed} of {changed.layers} layers"
        only = "" if changed.changed == 1 else "most: "
        text = f"the fine-tune changed {changed.changed} of {changed.tensors} tensors, {layers} ({only}{most}{of_rank})"
        said.append(Candidate(text=text))
        said += [Candidate(text=beside)] if (beside := weights_findings.beside_weights(manifest)) else []
    if found and weights_words.reparametrised(found):
        why = "on these prompts the function did not change with them: they are reparametrised, or the change does not reach here"
        return [*said, Candidate(text=why)] if said else []
    return [*said, *grafting_words.modules(rows)]


def _where(rows: pl.DataFrame, summary: pl.DataFrame) -> list[Candidate]:
    """From where on more than half of D is carried over, the strongest single output, and how much of that is one constant vector."""
    crossings = {direction: patching_findings.half_way(rows, direction) for direction in (BREAKAGE, RECOVERY)}
    n = difference.d_per_prompt(rows).height
    said = []
    into = {BREAKAGE: "(base into tuned)", RECOVERY: "(tuned into base)"}
    passed = [f"{patching_words.crossing(one, brief=True)} {into[direction]}" for direction, one in crossings.items() if one]
    if len({one.site for one in crossings.values() if one}) == 1 and len(passed) > 1:
        passed = [f"{patching_words.crossing(next(one for one in crossings.values() if one), brief=True)}, in both directions"]
    if passed:
        text = f"patches of the residual stream carry more than half of D {' and '.join(passed)}"
        said.append(Candidate(text=text, n=n))
    ranked, ranking = patching_findings.ranked_outputs(rows, summary)
    if not ranked.is_empty():
        first = ranked.row(0, named=True)
        chosen = " (selected on other prompts)" if ranking != difference.reported(rows, "patching") else f" ({grafting_words.BIASED})"
        said.append(Candidate(text=f"strongest output: {first['name']}{chosen}, {patching_words.both_shares(first)}", n=n))
    constant = patching_constant.constant(rows, summary)
    if constant is not None:
        said.append(Candidate(text=patching_words.in_short(constant), n=constant.n, tested=constant.recovers))
    return said
