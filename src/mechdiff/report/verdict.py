"""The verdict: at most five sentences, one for each question of a study, each computed from the run's tables and true of them.

1. Do they behave differently?  2. Which weights changed, and which module's change matters?  3. Where does it matter?
4. Can a map carry it, how many dimensions has it, does it obey?  5. Which heads carry it?

Where D is not above the noise floor there is no effect to take shares of: then the first two are all there is. What each measure found beside
this stands at the head of its section (`wording.leads`).
"""

import polars as pl

from mechdiff.report import (
    findings,
    findings_grafting,
    findings_weights,
    wording,
)
from mechdiff.report.findings import BREAKAGE, RECOVERY, Difference
from mechdiff.report.phrasing import listed, nats, share, with_interval
from mechdiff.report.wording_behaviour import difference, on_report
from mechdiff.report.wording_heads import which_heads
from mechdiff.report.wording_transport import can_it_be_carried

SAME_ON_EVERY_PROMPT = 0.8
"""Share of what a prompt's own state carries over from which on a constant is said to carry most of it."""


def verdict(rows: pl.DataFrame, summary: pl.DataFrame, manifest: dict) -> list[str]:
    """At most five sentences with their intervals; fewer where measures were left out, or where there is no effect to explain."""
    found = findings.difference(rows, summary)
    clauses = [[*_behaviour(rows, manifest, found)], _weights(rows, summary, found)]
    if found is None or found.divides:
        clauses += [_where(rows, summary), can_it_be_carried(rows, summary, manifest), which_heads(rows, summary, manifest)]
    return [_sentence(parts) for parts in clauses if parts]


def _sentence(clauses: list[str]) -> str:
    text = "; ".join(clause.removesuffix(".") for clause in clauses)
    return f"{text[0].upper()}{text[1:]}."


def _behaviour(rows: pl.DataFrame, manifest: dict, found: Difference | None) -> list[str]:
    """D, and every difference between the answers that is seen; what was looked for and not seen stands in its section."""
    said = [wording.how_different(found)]
    _, compared = on_report(rows, manifest)
    seen = [one for one in compared if one.counts]
    if seen:
        said.append(f"in its answers the tuned model has {listed(map(difference, seen))}")
    return [*said, *(["their answers show no difference"] if compared and not seen else [])]


def _weights(rows: pl.DataFrame, summary: pl.DataFrame, found: Difference | None) -> list[str]:
    """How much of the network changed, and the module whose tuned weights alone go furthest."""
    changed = findings_weights.how_many(summary)
    said = []
    if changed is not None and not changed.changed:
        return [f"not one of the {changed.tensors} tensors differs: these are the same weights"]
    if changed is not None:
        top = findings_weights.tensors(summary).row(0, named=True)
        most = f"{findings_weights.short_tensor(top['unit'])}, by {nats(top['relative_norm'])} of its norm"
        of_rank = f", rank {top['numerical_rank']:.0f}" if top.get("numerical_rank") else ""
        layers = f"in {changed.layers_changed} of {changed.layers} layers"
        only = "" if changed.changed == 1 else "most: "
        said.append(f"the fine-tune changed {changed.changed} of {changed.tensors} tensors, {layers} ({only}{most}{of_rank})")
    if found and wording.reparametrised(found):
        why = "on these prompts the function did not change with them: they are reparametrised, or the change does not reach here"
        return [*said, why] if said else []
    alone, ranking = findings_grafting.ranked(rows)
    if not alone.is_empty():
        best = alone.row(0, named=True)
        recovered = with_interval(best["share"], best["low"], best["high"], digits=2)
        of_several = _chosen(ranking, rows, "grafting") if len(alone) > 1 else ""
        said.append(f"the tuned weights of {best['name']} alone{of_several} recover {recovered} of D")
        said += [how_many] if (how_many := wording.how_many_modules(rows)) else []
    return said


def _where(rows: pl.DataFrame, summary: pl.DataFrame) -> list[str]:
    """From where on more than half of D is carried over, the strongest single output, and whether it is the same on every prompt."""
    crossings = {direction: findings.half_way(rows, direction) for direction in (BREAKAGE, RECOVERY)}
    said = []
    writes = {BREAKAGE: "base state is written into the tuned model", RECOVERY: "tuned state is written into the base"}
    passed = [f"{wording.crossing(one)} on when the {writes[direction]}" for direction, one in crossings.items() if one]
    if passed and len({one.site for one in crossings.values() if one}) == 1 and len(passed) > 1:
        passed = [f"{wording.crossing(next(one for one in crossings.values() if one))} on, in both directions"]
    if passed:
        said.append(f"along the residual stream more than half of D is carried over from {' and from '.join(passed)}")
    ranked, ranking = findings.ranked_outputs(rows, summary)
    if not ranked.is_empty():
        first = ranked.row(0, named=True)
        said.append(f"the strongest output is {first['name']}{_chosen(ranking, rows, 'patching')}, {wording.both_shares(first)}")
    _, shares = findings.recovery_by_arm(rows, summary)
    own, constant = shares.get("identity"), max((shares.get(arm, -1.0) for arm in ("shift", "mean")), default=-1.0)
    if own is not None and own >= wording.LEAST_TO_SPLIT and constant >= 0:
        same = constant >= SAME_ON_EVERY_PROMPT * own
        said.append(
            f"{'most of it is the same on every prompt' if same else 'it depends on the prompt'} (a constant recovers {share(constant, 3)})"
        )
    return said


def _chosen(ranking: str | None, rows: pl.DataFrame, measure: str) -> str:
    """Where the best of several was chosen, if on other prompts than it is reported on; else that it is a little flattered."""
    return f" (chosen on {ranking})" if ranking != findings.reported(rows, measure) else " (chosen on these prompts, a little flattered)"
