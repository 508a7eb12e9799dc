"""Mapped patches are computed once more by whole forward passes."""

from mechdiff.architectures.sites import Site
from mechdiff.audit import answers
from mechdiff.audit.distributions import NotRecomputed, Row, of_law, run_with
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put
from mechdiff.engine.counterfactuals import LOCATING as LAW_METRICS
from mechdiff.maps.maps import load_map
from mechdiff.measures.patching.verify import written
from mechdiff.measures.transport.plan import CONSTANT, TransportOptions


def again(run: Rerun, row: Row) -> float:
    """Mapped states written into a running model, by the maps that the run kept."""
    if answers.what_of(row["metric"]):
        return _over_answer(run, row)
    if row["metric"] not in LAW_METRICS:
        raise NotRecomputed("qualities of fits")
    if row["control"] == "no_op":
        return of_law(run, row, run_with(run, row, dict))
    if row["control"] is not None:
        raise NotRecomputed("controls by fits that are not kept")
    if row["strength"] is not None:
        raise NotRecomputed("strengths of a map")
    if row["unit"] == "interchange":
        raise NotRecomputed("interchanges, whose directions are not kept")
    site = Site(row["layer"], row["site"])
    if row["arm"] in ("identity", "shift", "mean", "resample"):
        if (options := run.prepared.study.asked(TransportOptions)) and options.rows_per_prompt > 1:
            raise NotRecomputed("means over positions spread along the prompts")
        return of_law(run, row, run_with(run, row, lambda: {site: Put(value=written(run, row, site, 1))}))
    back = row["direction"] == "tuned<-tuned"
    file = run.path / "maps" / f"{site}.{row['arm']}.{'tuned_to_base' if back else 'base_to_tuned'}.safetensors"
    if not file.is_file():
        raise NotRecomputed("maps are kept at the closer layers alone")
    one = load_map(file)
    if row["rank"] != one.rank_:
        raise NotRecomputed("maps of other ranks are not kept")
    source = run.state("tuned" if back else "base", row["split"], row["prompt"], site)
    return of_law(run, row, run_with(run, row, lambda: {site: Put(value=one.transform(source).float())}))


def _over_answer(run: Rerun, row: Row) -> float:
    """The base's own states moved by the mean difference along other prompts' answers, or the tuned model's mean state there."""
    if row["control"] != "no_op" and row["arm"] not in CONSTANT:
        raise NotRecomputed("maps of answers are fits that are not kept")
    split, prompt = row["split"], row["prompt"]

    def puts() -> dict[Site, Put]:
        if row["control"] == "no_op":
            return {}
        site = Site(row["layer"], row["site"])
        base, tuned = (answers.mean_of_others(run, side, split, prompt, site) for side in ("base", "tuned"))
        own = answers.states(run, "base", split, prompt, [site])[site].double()
        return {site: Put(value=own + tuned - base if row["arm"] == "shift" else tuned.expand(len(own), -1))}

    return answers.of_run(run, row, puts)
