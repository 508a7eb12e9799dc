"""Steered runs are computed once more by whole forward passes."""

from mechdiff.architectures.sites import Site
from mechdiff.audit import answers
from mechdiff.audit.distributions import NotRecomputed, Row, of_law, run_with, window
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put
from mechdiff.engine.counterfactuals import LOCATING as LAW_METRICS
from mechdiff.maps.vectors import load_vector


def again(run: Rerun, row: Row) -> float:
    """The mean difference, as the run saved it, added to the base's states."""
    if answers.what_of(row["metric"]):
        return _over_answer(run, row)
    if row["arm"] != "add" or row["control"] is not None:
        raise NotRecomputed("projections into subspaces, which are fits; random and exchanged vectors")
    if row["metric"] not in LAW_METRICS:
        raise NotRecomputed("side effects on texts")
    width, n_pos = window(row["unit"])
    if width > 1 or row["rank"] == 0:
        raise NotRecomputed("windows")
    site = Site(row["layer"], row["site"])
    file = run.path / "steering" / f"{site}.safetensors"
    if not file.is_file():
        raise NotRecomputed("vectors are kept at the selected layers alone")
    vector = load_vector(file)[1] * (1.0 if row["strength"] is None else row["strength"])
    length = len(run.ids("base", row["split"], row["prompt"])) if n_pos is None else n_pos
    return of_law(run, row, run_with(run, row, lambda: {site: Put(value=vector.expand(length, -1), add=True)}))


def _over_answer(run: Rerun, row: Row) -> float:
    """The mean difference along other prompts' answers, added to the base's states, or taken out of the tuned model's."""
    if row["control"] not in (None, "no_op"):
        raise NotRecomputed("random vectors are draws")
    split, prompt = row["split"], row["prompt"]

    def puts() -> dict[Site, Put]:
        if row["control"] == "no_op":
            return {}
        site = Site(row["layer"], row["site"])
        base, tuned = (answers.mean_of_others(run, side, split, prompt, site) for side in ("base", "tuned"))
        if row["arm"] == "add":
            n_places = answers.read(run, "base", split, prompt)[1]
            return {site: Put(value=(tuned - base).expand(n_places, -1) * (1 if row["strength"] is None else row["strength"]), add=True)}
        own, towards = answers.states(run, "tuned", split, prompt, [site])[site].double(), (tuned - base) / (tuned - base).norm()
        return {site: Put(value=-((own - base) @ towards)[:, None] * towards, add=True)}

    return answers.of_run(run, row, puts)
