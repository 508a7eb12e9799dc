"""Patches are computed once more by whole forward passes."""

from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import answers
from mechdiff.audit.distributions import NotRecomputed, Row, of_law, run_with, window
from mechdiff.audit.rerun import WINDOW, Rerun
from mechdiff.audit.whole import Put
from mechdiff.prompts.parts import parts


def again(run: Rerun, row: Row) -> float:
    """A state written at a site, at one position or several, in one block or a window of them; also over an answer."""
    if answers.what_of(row["metric"]):
        return _over_answer(run, row)
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    if (row["unit"] or "").startswith("position"):
        return of_law(run, row, run_with(run, row, lambda: _at_positions(run, row)))
    if row["layer"] is None:
        sites = [Site.parse(name) for name in labels.set_of(row["unit"])]
        return of_law(run, row, run_with(run, row, lambda: {site: Put(value=written(run, row, site, 1)) for site in sites}))
    width, n_pos = window(row["unit"])
    if n_pos and n_pos > WINDOW:
        raise NotRecomputed(f"more than {WINDOW} positions")

    def puts() -> dict[Site, Put]:
        sites = [Site(layer, row["site"]) for layer in range(row["layer"], row["layer"] + width)]
        return {site: Put(value=written(run, row, site, n_pos)) for site in sites}

    return of_law(run, row, run_with(run, row, puts))


def _at_positions(run: Rerun, row: Row) -> dict[Site, Put]:
    """The other model's states at one part of the prompt, or at one position."""
    side, source = labels.sides(row["direction"])
    split, prompt, site = row["split"], row["prompt"], Site(row["layer"], row["site"])
    ids = run.ids(side, split, prompt)
    found = {
        labels.position_unit(part): places for part, places in parts([run.ids(side, split, name) for name in run.names(split)], ids).items()
    }
    found |= {labels.position_unit(place): range(place, place + 1) for place in range(len(ids))}
    places = found[row["unit"]]
    states = run.state(source, split, prompt, site, None)
    return {site: Put(value=states[places.start : places.stop], start=places.start)}


def _over_answer(run: Rerun, row: Row) -> float:
    """The other model's states at every place of the answer, or at the one alone where the two models part."""

    def puts() -> dict[Site, Put]:
        if row["control"] == "no_op":
            return {}
        site, (side, source) = Site(row["layer"], row["site"]), labels.sides(row["direction"])
        split, prompt = row["split"], row["prompt"]
        there = answers.states(run, source, split, prompt, [site])[site]
        if row["unit"] != labels.along_answer(labels.PARTING, run.prepared.study.answers.tokens):
            return {site: Put(value=there)}
        tops = [answers.clean(run, one, split, prompt).argmax(-1).tolist() for one in (side, source)]
        place = next(i for i, (mine, other) in enumerate(zip(*tops, strict=True)) if mine != other)
        ids, n_places = answers.read(run, side, split, prompt)
        return {site: Put(value=there[place : place + 1], start=len(ids) - n_places + place)}

    return answers.of_run(run, row, puts)


def written(run: Rerun, row: Row, site: Site, n_pos: int | None) -> Tensor:
    """`[pos, d]` that an arm without a fit writes."""
    to, source = labels.sides(row["direction"])
    split, prompt, arm = row["split"], row["prompt"], row["arm"]
    if arm == "identity":
        return run.state(source, split, prompt, site, n_pos)
    if n_pos is None:
        raise NotRecomputed("a condition of all positions that needs other prompts")
    towards = "base" if row["direction"] == "tuned<-tuned" else "tuned"
    if arm == "oracle":
        return run.state(to, split, prompt, site, n_pos)
    if arm == "resample":
        return run.state(towards, split, run.donor(split, prompt), site, n_pos)
    if arm == "mean":
        return run.mean(towards, site, n_pos)
    if arm == "shift":
        away = "tuned" if towards == "base" else "base"
        return run.state(away, split, prompt, site, n_pos) + run.mean(towards, site, n_pos) - run.mean(away, site, n_pos)
    raise NotRecomputed(f"the condition {arm}")
