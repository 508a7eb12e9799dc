"""Over whole answers maps are fitted on the answers to other prompts, and the base writes its own mapped activations at every position.

Maps of the decision position have seen how answers open and nothing else. So they are fitted here on all positions of the answers to other prompts
(study/answers.py: the prompt that is scored is not among them), a row each, and the base writes T(its own state) at every position of the answer
(transport proper). `shift` is steering's vector over answers, added at full strength.
"""

from typing import Any

import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import LOCATING, labelled
from mechdiff.engine.replay import Variant, Write
from mechdiff.measures.patching.hot import closer_layers
from mechdiff.measures.transport import formula
from mechdiff.measures.transport.compute import few_threads, map_settings
from mechdiff.measures.transport.formula import Maps, Sample
from mechdiff.measures.transport.plan import CONSTANT, TransportOptions
from mechdiff.models.pair import Model
from mechdiff.study.answers import along, unseen
from mechdiff.study.cells import Cell
from mechdiff.study.execution import Execution, answered
from mechdiff.study.experiment import Result


def mapped(run: Execution, cell: Cell, model: Model | None) -> Result:
    """Rows of every map, written at every position of the answers at the closer layers."""
    assert model
    options = run.prepared.study.asked(TransportOptions)
    assert options
    key, on = cell.key, [unseen(run, name) for name in cell.key["ids"]]
    states, named = run.states_of(cell, "base"), list[dict[str, Any]]()
    variants: list[Variant] = []
    for layer in closer_layers(run, options):
        at = states.kinds[key["kind"]][states.layers.index(layer)]
        maps = [_fitted(run, cell, layer, names).there for names in on]
        for arm in maps[0]:
            value = torch.stack([of[arm].transform(state).float() for of, state in zip(maps, at, strict=True)])
            variants.append({Site(layer, key["kind"]): Write(value=value)})
            named.append({"layer": layer, "arm": arm})
    told = labelled(
        len(named), measure="transport", direction=key["direction"], split=key["split"], site=key["kind"], unit=key["position"],
        **{name: [label[name] for label in named] for name in ("layer", "arm")},
    )  # fmt: skip
    return run.variants(cell, model, variants, told, floor=key["floor"], metrics=LOCATING), {}


def _fitted(run: Execution, cell: Cell, layer: int, names: tuple[str, ...]) -> Maps:
    def made() -> Maps:
        base, tuned = (along(run, cell, side, layer, names) for side in ("base", "tuned"))
        clusters = run.clusters(cell.key["split"], names)
        groups = torch.tensor([list(dict.fromkeys(clusters)).index(one) for one, rows in zip(clusters, base, strict=True) for _ in rows])
        fit = Sample(base=torch.cat(base), tuned=torch.cat(tuned), groups=groups)
        arms = (*CONSTANT, *cell.key["settings"]["maps"])
        with few_threads(len(fit.base)):
            return formula.fit_maps(arms, fit, None, settings=map_settings(run, cell), back=False, seed=cell.key["seed"])

    return run.once(("maps of answers", answered(cell), cell.key["kind"], layer, names), made)
