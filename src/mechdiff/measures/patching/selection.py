"""Which layers do later measures look at? Chosen on the `select` split alone, they are carried by name into what is reported."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl

from mechdiff import shares
from mechdiff.digits import fixed
from mechdiff.measures.patching.plan import PatchingOptions
from mechdiff.measures.similarity.plan import SimilarityOptions
from mechdiff.rows import where
from mechdiff.study.cells import Cell, Item
from mechdiff.study.options import CloserOptions
from mechdiff.study.planner import Planner, prompt_hashes, told_apart

N_HOT = 3
ROBUST = "cka_without_top3"
"""What similarity is judged by: one wide coordinate that no one reads must not choose a layer, or hide one."""


def choose_layers(rows: pl.DataFrame) -> dict[str, Any] | None:
    """`hot_layers` (largest effect of one component, and lowest CKA, by `ROBUST`), `control_layers` (highest), and why; None without `select` rows.

    The effect of a layer is the mean KL that patching its attention or MLP output brings (identity arm, both directions), because patching the
    residual stream grows towards the last layer whatever was changed. Where the vocabularies differ it is on the tokens of both models.
    """
    chosen = where(rows, split="select", control=None, unit=None).filter(pl.col("layer").is_not_null())
    patched = chosen.filter((pl.col("measure") == "patching") & (pl.col("arm") == "identity"))
    effect = patched.filter(pl.col("metric") == shares.own(shared=shares.OWN[1] in patched["metric"]))
    components = effect.filter(pl.col("site").is_in(["attn_out", "mlp_out"]))
    by_effect = (components if len(components) else effect).group_by("layer", "site", "direction").agg(pl.col("value").mean())
    by_effect = by_effect.group_by("layer").agg(pl.col("value").max()).sort("value", "layer", descending=[True, False])
    alike = chosen.filter((pl.col("measure") == "similarity") & pl.col("value").is_not_nan())
    robust = alike.filter(pl.col("metric") == ROBUST)
    cka = robust if len(robust) else alike.filter(pl.col("metric") == "cka")
    name = "CKA without its three widest dimensions" if len(robust) else "CKA"
    by_cka = cka.group_by("layer").agg(pl.col("value").min()).sort("value", "layer")
    if not len(by_effect) and not len(by_cka):
        return None
    why = {f"L{layer}": f"effect of patching {value:.3g} nats" for layer, value in by_effect.head(N_HOT).iter_rows()}
    hot = list(by_effect["layer"].head(N_HOT))
    if len(by_cka):
        layer, value = by_cka.row(0)
        why[f"L{layer}"] = f"{why[f'L{layer}']}; lowest {name} {fixed(value)}" if layer in hot else f"lowest {name} {fixed(value)}"
        hot += [layer] if layer not in hot else []
    control = [layer for layer in by_cka["layer"].reverse() if layer not in hot][:1]
    why |= {f"L{layer}": f"control: highest {name} {fixed(by_cka.filter(pl.col('layer') == layer)['value'][0], 6)}" for layer in control}
    candidates = len(set(by_effect["layer"]) | set(by_cka["layer"]))
    return {"hot_layers": sorted(hot), "control_layers": control, "split": "select", "n_candidates": candidates, "why": why}


CHOOSING = ("patching", "similarity")
"""Stages whose rows on the select prompts choose the hot layers."""

CHOICE = {"sites", "layers", "stride", "directions"}
"""Options that say what is run of these on the select prompts: arms, windows, pairs and maps of positions are of the report prompts alone."""

CLOSER = ("capture", *CHOOSING)
"""What must be there before the closer layers are known."""

N_CLOSER = 4
"""Layers that are looked at more closely, as far as the plan can know."""


def closer_cell(planner: Planner, shard: tuple[Item, ...], stage: str, what: dict[str, Any], options: CloserOptions, runs: int) -> Cell:
    """A cell of `runs` variants at each of the closer layers."""
    layers = list(options.closer) if options.closer != "hot" else [planner.shape.n_layers // 2] * N_CLOSER
    made = planner.patch_cell(shard, stage, what | {"layers": layers * runs, "n_variants": len(layers) * runs}, 1)
    key = {name: value for name, value in made.key.items() if name != "layers"}
    return Cell(stage=stage, key={**key, **choice(planner, options)}, items=shard, side=made.side, flops=made.flops)


def closer_over_answers(
    planner: Planner, stage: str, what: dict[str, Any], options: CloserOptions, runs: int, *, fitted: str
) -> Iterator[Cell]:
    """Cells of `runs` edits over the answers at each of the closer layers; `fitted`: what is made of the answers to others (study/answers.py)."""
    if planner.answered and len({item.cluster or item.id for item in planner.answered}) < 2:
        many = "all answered prompts say the same (one cluster)" if len(planner.answered) > 1 else "there is one answered prompt"
        planner.skip(f"{fitted} over answers", f"{many}, and what is patched in is made of the answers to others")
        return
    layers = list(options.closer) if options.closer != "hot" else [planner.shape.n_layers // 2] * N_CLOSER
    on = {"answered": told_apart(planner.answered)}
    for made in planner.over_answers(stage, what | on, layers, runs):
        key = {name: value for name, value in made.key.items() if name != "layers"}
        yield replace(made, key={**key, **choice(planner, options)})


def choice(planner: Planner, options: CloserOptions) -> dict[str, Any]:
    """What decides which layers are looked at more closely."""
    if options.closer != "hot":
        return {"closer": options.closer}
    patching, similarity = planner.study.asked(PatchingOptions), planner.study.asked(SimilarityOptions)
    by = {name: one.model_dump(include=CHOICE) for name, one in (("patching", patching), ("similarity", similarity)) if one}
    return {
        "closer": "hot",
        "closer_by": by,
        "closer_on": prompt_hashes(planner, "select"),
        "closer_of": options.layer_numbers(planner.shape.n_layers),
    }
