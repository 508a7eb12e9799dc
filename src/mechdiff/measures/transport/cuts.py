"""A sweep: maps between the first k principal components of each side, for several k, written at several strengths.

    T_k          the map of one family (procrustes, whitened_procrustes) between the top k components of either model; "full": between all
    written      own + s (T_k(x) - own), on the prompts that T_k was fitted on and on the reported ones
    `itself`     the control: T_k between the running model and itself, on the same prompts, of its own activations

What the maps are fitted on spans so many components and no more; a larger k is not written, for it would be this map once more.

Between a model and itself T_k is the projection on k components (maps/by_name.py). What a small k does there is done to activations that have not
changed, so only what a sweep does beyond that control can be of the fine-tune.
"""

from collections.abc import Iterator
from itertools import product

from torch import Tensor

from mechdiff import labels
from mechdiff.maps.anchored import Pairs
from mechdiff.maps.maps import Map
from mechdiff.maps.regression import decompose
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport.closer import Look
from mechdiff.measures.transport.compute import few_threads, map_settings, sample
from mechdiff.measures.transport.formula import Sample, fit_maps
from mechdiff.measures.transport.plan import FULL, TransportOptions, allowed_cuts
from mechdiff.models.pair import Model
from mechdiff.rows import empty
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution
from mechdiff.study.experiment import Result


def cuts(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every cut at every strength at the closer layers; on the report prompts with the control."""
    assert model
    options = run.prepared.study.asked(TransportOptions)
    assert options
    look, of = Look(run, cell), labels.runner(cell.key["direction"])
    for layer, arm, cut in _asked(run, cell, options):
        own = look.own[layer]
        written: dict[str | None, tuple[Map, Tensor]] = {None: (cut_map(run, cell, layer, arm, cut), look.source[layer])}
        if look.split == "report":
            written["itself"] = (cut_map(run, cell, layer, arm, cut, within=of), own)
        for (control, (one, source)), strength in product(written.items(), cell.key["strengths"]):
            target, at = one.transform(source), None if strength == 1 else strength
            state = target if at is None else own + at * (target - own)
            look.write(layer, state, arm=arm, rank=one.rank_, strength=at, control=control, unit=labels.cut_unit(cut))
    return (look.rows(run, cell, model, "transport") if look.variants else empty()), {}


def _asked(run: Execution, cell: Cell, options: TransportOptions) -> Iterator[tuple[int, str, int | str]]:
    """Layer, map and cut of everything that is written."""
    for layer in closer_layers(run, options):
        yield from ((layer, arm, cut) for arm, cut in product(cell.key["cut_maps"], within_span(run, cell, layer)))


def within_span(run: Execution, cell: Cell, layer: int) -> list[int | str]:
    """The cuts of a cell that what its maps are fitted on allows at a layer."""
    return allowed_cuts(cell.key["cuts"], spanned(run, cell, layer))


def spanned(run: Execution, cell: Cell, layer: int) -> int:
    """How many principal components the fit states of both models have: the smaller number."""
    kind = cell.key["kind"]

    def found() -> int:
        fit = sample(run, cell, kind, layer)
        pairs = Pairs.of(fit.base, fit.tuned)
        return min(len(pairs.decomposed.singular), len(decompose(pairs.target).singular))

    return run.once(("spanned", kind, layer), found)


def cut_map(run: Execution, cell: Cell, layer: int, arm: str, cut: int | str, within: str | None = None) -> Map:
    """The map from base to tuned between so many components, or from one model to itself; fitted once an execution."""
    kind = cell.key["kind"]

    def fitted() -> Map:
        fit = sample(run, cell, kind, layer)
        if within:
            one = getattr(fit, within)
            fit = Sample(base=one, tuned=one, groups=fit.groups)
        settings = map_settings(run, cell)[arm] | {"cut": None if cut == FULL else cut}
        with few_threads(len(fit.base)):
            return fit_maps((arm,), fit, None, settings={arm: settings}, back=False, seed=cell.key["seed"]).there[arm]

    return run.once(("cut map", kind, layer, arm, cut, within), fitted)
