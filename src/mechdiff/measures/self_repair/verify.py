"""Direct and total effects are computed once more by whole forward passes."""

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.audit.distributions import Row, of_law
from mechdiff.audit.rerun import Rerun
from mechdiff.audit.whole import Put
from mechdiff.measures.self_repair.plan import DIRECT, OUTPUTS, TOTAL


def again(run: Rerun, row: Row) -> float:
    """One arm by hooks at all the sites that it writes; what is taken off as the difference of two."""
    if row["metric"] == "repaired_nats":
        sides = [again(run, row | {"metric": "fisher_overlap_nats", "arm": arm}) for arm in (DIRECT, TOTAL)]
        return sides[0] - sides[1]
    side, source = labels.sides(row["direction"])
    split, prompt, here = row["split"], row["prompt"], Site(row["layer"], row["site"])
    key = ("self_repair", row["direction"], row["arm"], split, prompt, here)
    if key not in run.cached:
        puts = {here: Put(value=run.state(source, split, prompt, here))}
        if row["arm"] == DIRECT:
            with run.model(side) as model:
                n_layers = model.shape.n_layers
            later = [Site(here.layer, "mlp_out")] if here.kind == "attn_out" else []
            later += [Site(layer, kind) for layer in range(here.layer + 1, n_layers) for kind in OUTPUTS]
            puts |= {site: Put(value=run.state(side, split, prompt, site)) for site in later}
        run.cached[key] = run.run(side, split, prompt, puts)
    return of_law(run, row, run.cached[key])
