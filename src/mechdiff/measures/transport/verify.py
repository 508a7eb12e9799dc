"""Mapped patches are computed once more by whole forward passes."""

from torch import Tensor

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit import answers
from mechdiff.audit.distributions import NotRecomputed, Row, of_law, run_with, window
from mechdiff.audit.rerun import WINDOW, Rerun
from mechdiff.audit.whole import Put
from mechdiff.engine.counterfactuals import LOCATING as LAW_METRICS
from mechdiff.labels import PATCHES
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
    if row["unit"] == "interchange":
        raise NotRecomputed("interchanges, whose directions are not kept")
    return of_law(run, row, run_with(run, row, lambda: {Site(row["layer"], row["site"]): Put(value=_state(run, row))}))


def _state(run: Rerun, row: Row) -> Tensor:
    """`[pos, d]`: the running model's own state, moved towards the mapped one by the row's strength."""
    n_pos = None if (row["unit"] or "").startswith("cut ") else window(row["unit"])[1]
    if (n_pos or 1) > WINDOW:
        raise NotRecomputed(f"more than {WINDOW} positions")
    target = _target(run, row, n_pos or 1)
    if row["strength"] is None:
        return target.float()
    own = run.state(labels.runner(row["direction"]), row["split"], row["prompt"], Site(row["layer"], row["site"]), n_pos or 1)
    return (own + row["strength"] * (target - own)).float()


def _target(run: Rerun, row: Row, n_pos: int) -> Tensor:
    """What the row's map makes of the states at the last `n_pos` positions, at full strength."""
    site, arm, back = Site(row["layer"], row["site"]), row["arm"], row["direction"] == "tuned<-tuned"
    if arm in PATCHES:
        options = run.prepared.study.asked(TransportOptions)
        if arm in ("shift", "mean") and n_pos == 1 and options and options.rows_per_prompt > 1:
            raise NotRecomputed("means over positions spread along the prompts")
        return written(run, row, site, n_pos)
    of = f".{row['unit'].replace(' ', '_')}" if row["unit"] else ""  # a cut, or a window with a map of its own
    file = run.path / "maps" / f"{site}.{arm}{of}.{'tuned_to_base' if back else 'base_to_tuned'}.safetensors"
    if not file.is_file():
        raise NotRecomputed("maps are kept at the selected layers alone")
    one = load_map(file)
    if row["rank"] != one.rank_:
        raise NotRecomputed("maps of other ranks are not kept")
    return one.transform(run.state("tuned" if back else "base", row["split"], row["prompt"], site, n_pos))


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
