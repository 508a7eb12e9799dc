"""The page's sentences say which modules' tuned weights recover the difference."""

import polars as pl

from mechdiff import labels, terms
from mechdiff.measures.divergence import both_answers
from mechdiff.measures.divergence.words import whose
from mechdiff.measures.grafting import findings
from mechdiff.measures.weights import findings as weights_findings
from mechdiff.measures.weights.words import reparametrised
from mechdiff.report import difference
from mechdiff.report.headlines import Candidate
from mechdiff.report.parts import Run
from mechdiff.report.phrasing import prompts, share, with_interval

BIASED = "chosen on these prompts, so optimistically biased"


def lead(run: Run) -> list[str]:
    """The module that does most, and the smallest set that does nearly all."""
    best = findings.ranked(run.rows)[0]["name"].to_list()[:1]
    beside = [said for one in run.by_answers[1:] for name in best for said in over_answers(one.rows, name, opening=_opening(one))]
    return [
        *which_module(run.rows, opening=_opening(run)),
        *beside,
        *both_answers.disagreement(run, findings.over_answers, "module", findings.INTO_BASE),
    ]


def clause(run: Run) -> list[Candidate]:
    """The same for the verdict; nothing where no weight changed, or the function did not change with them."""
    changed, found = weights_findings.how_many(run.summary), difference.difference(run.rows, run.summary)
    if (changed is not None and not changed.changed) or (found is not None and reparametrised(found)):
        return []
    return modules(run.rows)


def _opening(run: Run) -> str:
    return "Over whole answers" if (of := whose(run)) == "the answers" else f"Over {of}"


def which_module(rows: pl.DataFrame, *, opening: str = "Over whole answers") -> list[str]:
    """The module whose tuned weights alone make the base most like the tuned model, and what a small set of them does."""
    alone, ranking = findings.ranked(rows)
    if alone.is_empty():
        return []
    best = alone.row(0, named=True)
    steady = findings.steadiness(rows, ranking)
    other = ranking != difference.reported(rows, "grafting")
    chosen = f" (chosen on {chosen_by(rows, ranking, ranking or '')}{steady})" if other else f" ({BIASED}{steady})"
    recovered = with_interval(best["share"], best["low"], best["high"], digits=2)
    moved = on_the_way(rows, best["name"])
    does = f"bring it {moved}; in KL they recover {recovered} of D" if moved else f"recover {recovered} of D"
    sentence = f"Copied into the base alone, the tuned weights of {best['name']}{chosen} {does}"
    several = how_many_modules(rows)
    return [f"{sentence}; {several}." if several else f"{sentence}.", *over_answers(rows, best["name"], opening=opening)]


def on_the_way(rows: pl.DataFrame, name: str) -> str:
    """ "0.31 (95 %: ...) of the way in logits", which a module's weights alone bring the base: a share that adds; empty if not measured."""
    return _way(findings.on_the_way(rows, name))


def _way(one: dict | None) -> str:
    if one is None:
        return ""
    return f"{with_interval(one['additive'], one['additive_low'], one['additive_high'], digits=2)} of the way in logits"


def over_answers(rows: pl.DataFrame, best: str, *, opening: str = "Over whole answers") -> list[str]:
    """What the same module recovers over whole answers, and which one recovers most there."""
    found = findings.first_and_answer(rows)
    if found.is_empty():
        return []
    first = found.row(0, named=True)
    mine = found.filter(pl.col("name") == best).row(0, named=True)
    recovered = with_interval(mine["answer"], mine["low"], mine["high"], digits=2)
    said = f"{opening} ({prompts(found['n'][0])}) the weights of {best} recover {recovered} of D"
    if first["name"] != best:
        said += f"; most there is {first['name']} ({BIASED}): {with_interval(first['answer'], first['low'], first['high'], digits=2)}"
    return [f"{said}."]


def how_many_modules(rows: pl.DataFrame) -> str:
    """ "L4.attn + L5.mlp, the smallest set ..., bring the base 0.95 (95 %: ...) of the way in logits; in KL they recover 0.93 (...) of D", from the
    greedy search; the latter alone where that way was not measured, and nothing where it was not run."""
    found = findings.needed(rows)
    if found is None:
        return ""
    row, wanted = found.row, share(findings.WANTED, 1)
    on = "these" if found.chosen_on == difference.reported(rows, "grafting") else f"the {terms.of_split(found.chosen_on)}"
    names = " + ".join(labels.set_of(row["unit"]))
    recovers = with_interval(row["share"], row["low"], row["high"], digits=2)
    one, moved = row["rank"] == 1, _way(findings.set_on_the_way(rows, row["unit"]))
    if found.enough:
        size = "one module" if one else f"{row['rank']} modules"
        does = f"bring{'s' * one} the base {moved}, and recover{'s' * one} {recovers} of D" if moved else f"recover{'s' * one} {recovers}"
        return f"{size}, the smallest greedy set with {wanted} of D on {on} prompts ({names}), {does}"
    tried = "one module" if one else f"{row['rank']} modules"
    why = "the most that the search was allowed" if found.at_budget else "all that changed"
    does = f"recover{'s' * one} {recovers} of D" + (f" and bring{'s' * one} the base {moved}" if moved else "")
    return f"{tried}, {why}, stay{'s' * one} under {wanted} of D on {on} prompts: {names} {does}"


def modules(rows: pl.DataFrame) -> list[Candidate]:
    """What the verdict may say of grafts."""
    alone, ranking = findings.ranked(rows)
    if alone.is_empty():
        return []
    best, found = alone.row(0, named=True), findings.needed(rows)
    said = []
    recovered = with_interval(best["share"], best["low"], best["high"], digits=2)
    chosen = f"selected on {chosen_by(rows, ranking)}" if ranking != difference.reported(rows, "grafting") else BIASED
    which = f"{best['name']} ({chosen})" if len(alone) > 1 else f"{best['name']}, the one module that changed,"
    single = "of single modules, " if len(alone) > 1 else ""
    moved = on_the_way(rows, best["name"])
    does = f"bring the base {moved}" if moved else f"recover {recovered} of D when copied into the base"
    said.append(Candidate(text=f"{single}the tuned weights of {which} {does}", n=best["n"]))
    if found is not None:
        said.append(Candidate(text=how_many_modules(rows), n=found.row["n"], at_budget=found.at_budget))
    return said


def chosen_by(rows: pl.DataFrame, ranking: str | None, kind: str = "other") -> str:
    """ "2 other prompts": those that ranked the modules."""
    return prompts(findings.scores(rows, ranking).filter(pl.col("arm") == "alone")["prompt"].n_unique(), kind)
