"""Patches are computed once more by whole forward passes."""

from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit.distributions import NotRecomputed, Row, of_law, run_with, window
from mechdiff.audit.rerun import WINDOW, Rerun
from mechdiff.audit.whole import Put


def again(run: Rerun, row: Row) -> float:
    """A state written at a site, at one position or several, in one block or a window of them."""
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    width, n_pos = window(row["unit"])
    if n_pos and n_pos > WINDOW:
        raise NotRecomputed(f"more than {WINDOW} positions")

    def puts() -> dict[Site, Put]:
        sites = [Site(layer, row["site"]) for layer in range(row["layer"], row["layer"] + width)]
        return {site: Put(value=written(run, row, site, n_pos)) for site in sites}

    return of_law(run, row, run_with(run, row, puts))


def written(run: Rerun, row: Row, site: Site, n_pos: int | None) -> Tensor:
    """`[pos, d]` that an arm without a fit writes."""
    to, source = labels.sides(row["direction"])
    split, prompt, arm = row["split"], row["prompt"], row["arm"]
    if arm == "identity":
        return run.state(source, split, prompt, site, n_pos)
    if n_pos is None:
        raise NotRecomputed("an arm of all positions that needs other prompts")
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
    raise NotRecomputed(f"the arm {arm}")
