"""Changes of weights are computed once more from the files."""

import numpy as np

from mechdiff.audit.distributions import NotRecomputed, Row
from mechdiff.audit.rerun import Rerun
from mechdiff.models.quantization import held_matrix


def again(run: Rerun, row: Row) -> float:
    """From whole tensors and full decompositions."""
    metric = row["metric"]
    named = {side: dict(run.nets[side].net.named_parameters(remove_duplicate=False)) for side in ("base", "tuned")}
    if row["unit"] not in named["base"] or row["unit"] not in named["tuned"]:
        raise NotRecomputed("modules, heads and tensors under other names")
    path, _, leaf = row["unit"].rpartition(".")
    layers = [run.nets[side].net.get_submodule(path) for side in ("base", "tuned")]
    before, after = ((held_matrix(one) if leaf == "weight" else one.get_parameter(leaf)).detach().double().cpu().numpy() for one in layers)
    if before.shape != after.shape:
        raise NotRecomputed("tensors of two shapes")
    delta = after - before
    if metric == "relative_norm":
        return float(np.linalg.norm(delta) / np.linalg.norm(before)) if delta.any() else 0.0
    if metric == "changed" and run.prepared.pair.tuned.adapter is None:
        return float(np.mean(delta != 0))
    if metric in ("spectral_norm", "stable_rank"):
        if min(delta.shape) > 2048:
            raise NotRecomputed("matrices whose full decomposition would take minutes")
        values = np.linalg.svd(delta, compute_uv=False)
        return float(values[0] if metric == "spectral_norm" else (values**2).sum() / values[0] ** 2)
    raise NotRecomputed("ranks and shares made of the values above")
