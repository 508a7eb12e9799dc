"""The numbers on the weights say which tensors changed, by how much, in how many directions."""

import re
from dataclasses import dataclass

import polars as pl

from mechdiff import labels
from mechdiff.rows import where
from mechdiff.statistics.memory import once

IN_BLOCKS = ("attn", "mlp", "norm")
OUTSIDE = ("embed", "final_norm", "head")
HEADS = {"ov_relative_norm": "what a head writes (W_V W_O)", "qk_relative_norm": "where a head looks (W_Q W_K)"}


@once
def tensors(summary: pl.DataFrame) -> pl.DataFrame:
    """`unit layer site` and a column per metric of each tensor, the most changed first; empty where weights were not compared."""
    of_weights = where(summary, measure="weights").filter(pl.col("unit").is_not_null(), ~pl.col("metric").is_in(list(HEADS)))
    if of_weights.filter(pl.col("metric") == "relative_norm").is_empty():
        return pl.DataFrame(schema={"unit": pl.String, "layer": pl.Int64, "site": pl.String, "relative_norm": pl.Float64})
    wide = of_weights.sort("metric").pivot(on="metric", index=["unit", "layer", "site"], values="mean")
    return wide.filter(pl.col("relative_norm").is_not_null()).sort(["relative_norm", "layer", "unit"], descending=[True, False, False])


@dataclass(frozen=True, kw_only=True)
class Changed:
    """How much of the network changed at all."""

    tensors: int
    changed: int
    """Tensors with at least one entry that is not equal."""
    layers: int
    layers_changed: int


@once
def how_many(summary: pl.DataFrame) -> Changed | None:
    """How many tensors and layers changed; None where weights were not compared."""
    found = tensors(summary)
    if found.is_empty():
        return None
    changed = found.filter(pl.col("relative_norm") > 0)
    return Changed(
        tensors=len(found),
        changed=len(changed),
        layers=found["layer"].drop_nulls().n_unique(),
        layers_changed=changed["layer"].drop_nulls().n_unique(),
    )


def unchanged(found: Changed, manifest: dict) -> str:
    """What can be said where not one compared tensor differs: "the same weights" only where every tensor was compared, and what else differs."""
    lineage = manifest.get("lineage") or {}
    counts = [(lineage.get("only_base"), "only in the base"), (lineage.get("only_tuned"), "only in the tuned model"),
              (lineage.get("uncompared_tensors"), "not compared"), (lineage.get("partly_tensors"), "compared in part")]  # fmt: skip
    others = [f"{len(names)} {words}" for names, words in counts if names]
    if others:
        said = f"not one of the {found.tensors} tensors that were compared differs, but {', '.join(others)}: the weights may differ"
    else:
        said = f"not one of the {found.tensors} tensors differs: these are the same weights"
    beside = beside_weights(manifest)
    return f"{said}; {beside}" if beside else said


def beside_weights(manifest: dict) -> str | None:
    """What differs between the two configs and is no weight; None where nothing does."""
    functions = (manifest.get("lineage") or {}).get("functions") or []
    few = "; ".join(functions[:3]) + (f"; and {len(functions) - 3} more" if len(functions) > 3 else "")
    return f"beside the weights their configs differ ({few}), and what is found is of that too" if functions else None


def modules(summary: pl.DataFrame) -> tuple[pl.DataFrame, bool]:
    """`layer site change share unit` of each module, and whether `change` is that of the whole module.

    Where only tensors were measured `change` is the largest relative norm among the module's tensors. `share` of the network's
    squared change; `unit` is the module's most changed tensor.
    """
    each = tensors(summary).filter(pl.col("site").is_not_null())
    most = each.group_by("layer", "site", maintain_order=True).agg(pl.col("unit").first(), largest=pl.col("relative_norm").first())
    whole = where(summary, measure="weights").filter(pl.col("unit").is_null())
    for metric, name in (("module_relative_norm", "whole"), ("share_of_change", "share")):
        part = whole.filter(pl.col("metric") == metric).select("layer", "site", pl.col("mean").alias(name))
        most = most.join(part, on=["layer", "site"], how="left", nulls_equal=True, maintain_order="left")
    is_whole = not most.is_empty() and most["whole"].null_count() == 0
    change = pl.col("whole") if is_whole else pl.col("largest")
    return most.select("layer", "site", change.alias("change"), "share", "unit").sort("layer", "site", nulls_last=True), is_whole


def heads(summary: pl.DataFrame) -> pl.DataFrame:
    """`layer head metric change` of each head's two products; empty where none changed or none was measured."""
    found = where(summary, measure="weights").filter(pl.col("metric").is_in(list(HEADS)))
    found = found.filter(labels.is_head(), pl.col("layer").is_not_null(), pl.col("mean").is_finite())
    found = found.select("layer", "metric", head=labels.head_number(), change="mean").sort("metric", "layer", "head")
    return found if (found["change"] > 0).any() else found.clear()


def spectra(summary: pl.DataFrame, manifest: dict, most: int = 6) -> list[dict]:
    """Of the most changed matrices with a spectrum: `unit`, `values` (singular, descending), `rank` (numerical) and `null`, or None."""
    known = (manifest.get("weights") or {}).get("spectra") or {}
    found: list[dict] = []
    for row in tensors(summary).iter_rows(named=True):
        values = [float(value) for value in known.get(row["unit"]) or [] if value and value > 0]
        if values and len(found) < most:
            found.append({"unit": row["unit"], "values": values, "rank": row.get("numerical_rank"), "null": row.get("spectral_norm_null")})
    return found


def short_tensor(name: str) -> str:
    """ "L26.self_attn.o_proj" for "model.layers.26.self_attn.o_proj.weight"."""
    layered = re.sub(r"^(?:\w+\.)*?(?:layers|h|blocks)\.(\d+)\.", r"L\1.", name)
    return layered.removesuffix(".weight").removeprefix("model.")


MATRICES = (r"q_proj|wq|query", r"k_proj|wk|key", r"v_proj|wv|value", r"qkv|c_attn|query_key_value", r"o_proj|out_proj|attn\S*c_proj|attn\S*dense",
            r"gate", r"up_proj|fc1|c_fc|h_to_4h", r"down_proj|fc2|mlp\S*c_proj|4h_to_h", r"norm|ln_")  # fmt: skip
"""The order of a block's matrices on the page: what of a tensor's name says which it is; others after the matrices, norms last."""


@once
def matrices(summary: pl.DataFrame) -> pl.DataFrame:
    """`layer matrix change unit` of each tensor in a block, by its name within the block, in the order of MATRICES.

    Of tensors that share a name but for a number (experts) the largest change, and the tensor that has it.
    """
    inside = tensors(summary).filter(pl.col("layer").is_not_null())
    names = [re.sub(r"\.\d+\.", ".*.", short_tensor(unit).partition(".")[2]) for unit in inside["unit"]]
    named = inside.with_columns(matrix=pl.Series(names, dtype=pl.String), change=pl.col("relative_norm"))
    most = named.group_by("layer", "matrix", maintain_order=True).agg(pl.col("change", "unit").first())  # `tensors` has the largest first
    place = {name: (_place_of(name), name) for name in most["matrix"].unique()}
    order = pl.col("matrix").replace_strict(
        {name: at for at, name in enumerate(sorted(place, key=lambda n: place[n]))}, return_dtype=pl.Int64
    )
    return most.select("layer", "matrix", "change", "unit").sort(order, "layer")


def _place_of(name: str) -> float:
    found = [place for place, words in enumerate(MATRICES) if re.search(words, name)]
    return (found[-1] if found[-1:] == [len(MATRICES) - 1] else found[0]) if found else len(MATRICES) - 1.5
