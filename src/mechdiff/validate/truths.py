"""Patching, similarity and divergence are held against edits whose place is known (METHOD C: P0, P2, P3, P8, P9, P12, P13).

They hold by construction in every model that mechdiff knows, so they are planted in a user's model too.
"""

from collections.abc import Iterator

import numpy as np
import torch

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.overlap import total_nats
from mechdiff.labels import CROSSED
from mechdiff.measures.grafting import formula as grafting_formula
from mechdiff.measures.grafting.formula import Prompts
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.measures.weights import spectra as weights_spectra
from mechdiff.models.modules import changes_between, tensors_of
from mechdiff.models.pair import wrap
from mechdiff.statistics.spread import root
from mechdiff.validate import edits, planted
from mechdiff.validate.checks import Check, above, at_most, names, near, same
from mechdiff.validate.edits import Edit
from mechdiff.validate.planted import Bench, Planted

CKA_PROMPTS = 12


def p0(bench: Bench) -> Iterator[Check]:
    """The same model twice."""
    pair = bench.plant(edits.identical, n_prompts=CKA_PROMPTS)
    yield at_most("D in nats, any prompt", pair.d_nats, 0)
    layers = sorted({0, bench.layer, pair.n_layers - 1})
    few = bench.plant(edits.identical)
    clean = few.logits("tuned")[:, None]
    off = [(few.patched("tuned<-base", kind, engine="full", layers=layers) - clean).abs().max() for kind in pair.base.kinds()]
    yield at_most("change of any logit by any patch, whole forward passes", off, 0)
    yield at_most("KL of any patch in nats, by replay", [pair.breakage(kind).max() for kind in pair.base.kinds()], 1e-10)
    yield near("CKA, every block and site whose activations vary", everywhere(pair), 1, 1e-12)
    yield at_most("change in the shared basis", everywhere(pair, "same_basis_change"), 0)
    yield same("units of the network that changed", changed_units(pair), set())


def p2(bench: Bench) -> Iterator[Check]:
    """Rank 2 added to the attention output matrix of one block."""
    yield from _one_matrix(bench, lambda net: edits.edit_attention(net, bench.layer), "attn_out", f"L{bench.layer}.attn")


def p3(bench: Bench) -> Iterator[Check]:
    """Rank 2 added to the last matrix of one block's MLP."""
    yield from _one_matrix(bench, lambda net: edits.edit_mlp(net, bench.layer), "mlp_out", f"L{bench.layer}.mlp")


def _one_matrix(bench: Bench, edit: Edit, kind: str, unit: str) -> Iterator[Check]:
    pair, here = bench.plant(edit, n_prompts=CKA_PROMPTS), bench.layer
    few = bench.plant(edit, whole=True)
    last = pair.n_layers - 1
    layers = sorted({0, here - 1, here, here + 1, last} & set(range(pair.n_layers)))

    def recovered(site: str, at: list[int] = layers) -> list[float]:
        return few.recovery(site, positions="all", engine="full", layers=at).tolist()

    yield above("D in nats", pair.d_nats.mean(), heard(bench))
    yield same("units of the network that changed", changed_units(pair), {unit})
    yield same("rank of the change of the weights", ranks(pair), {2})
    blocks = ", ".join(map(str, layers))
    yield near(f"share recovered by all positions of resid_pre, blocks {blocks}", recovered("resid_pre"),
               [float(layer > here) for layer in layers], bench.rounding)  # fmt: skip
    yield near(
        f"share recovered by all positions of resid_post, blocks {blocks}",
        recovered("resid_post"),
        [float(layer >= here) for layer in layers],
        bench.rounding,
    )
    yield near(f"share recovered by all positions of {kind} of block {here}", recovered(kind, [here]), 1, bench.rounding)
    for direction in CROSSED:
        moved = few.way(direction, kind, positions="all", engine="full", layers=[here])
        yield near(f"{direction}: part of the way in logits that the same moves, a share that adds", moved, 1, first_order(bench, few))
    if "z" in pair.base.kinds():
        yield near(f"share recovered by all positions of z of block {here}", recovered("z", [here]), 0, bench.rounding)
    if kind == "mlp_out":
        yield near(
            f"share recovered by all positions of attn_out of blocks up to {here}",
            recovered("attn_out", [one for one in layers if one <= here]),
            0,
            bench.rounding,
        )
    share = pair.recovery("resid_post")
    if here:
        yield near("share recovered by the last position of resid_post, below the block", share[:here], 0, first_order(bench, pair))
    if here < last:
        yield above("share recovered by the last position of resid_post, in the block and above it but for the last", share[here:last], 0)
        yield at_most("the same share: one position does not carry all", share[here:last], 0.9999)
    yield near("share recovered by the last position of resid_post, last block", share[last], 1, bench.rounding)
    breakage = pair.breakage("resid_post").mean(0)
    yield same("first block where the base's activation breaks the tuned model", int((breakage > 1e-9).int().argmax()), here)
    alike = cka(pair, "resid_post")
    if below := [value for layer, value in alike.items() if layer < here]:
        yield near("CKA of resid_post below the block", below, 1, 1e-12)
    yield above("1 - CKA of resid_post in the block and above it", [1 - value for layer, value in alike.items() if layer >= here], 1e-9)
    if here in (by_z := cka(pair, "z") if "z" in pair.base.kinds() else {}):
        yield near(f"CKA of z of block {here}", by_z[here], 1, 1e-12)


NOISE = (0.001, 0.002, 0.005, 0.01)


def p8(bench: Bench) -> Iterator[Check]:
    """A little noise on every matrix, in four sizes."""
    if not edits.has_dense_mlps(bench.net):
        raise edits.Absent("its experts are chosen by rank, so effects do not grow smoothly")
    pairs = [bench.plant(edits.add_noise(size), n_prompts=CKA_PROMPTS) for size in NOISE]
    yield near("slope of log D over log size", slope([float(pair.d_nats.mean()) for pair in pairs]), 2, 0.1)
    yield near(
        "slope of log (1 - CKA) over log size, last block",
        slope([1 - cka(pair, "resid_post")[pair.n_layers - 1] for pair in pairs]),
        2,
        0.1,
    )
    largest, d = pairs[-1], float(pairs[-1].d_nats.mean())
    lattice = grafts(largest)
    alone = [float(lattice.value([unit]).mean()) / d for unit in lattice.changes.units]
    yield above("share of D that stays with any one unit grafted: none carries it", alone, 0.2)
    if bench.tiny:
        yield from _even(pairs[0])
    floor = [weights_spectra.spectral_norm_null(float(one.norm()), *one.shape) for one in matrices(largest)]
    found = [weights_spectra.spectrum(one, exact_up_to=8192) for one in matrices(largest)]
    sizes = np.array([float(one.values[0]) for one in found])
    yield near("largest singular value of each change, over that of noise of its norm", sizes / floor, 1, 0.15)
    yield above(
        "dimensions that hold half of a change, of all: no knee", [(one.energy_rank(50) or 0) / len(one.values) for one in found], 0.1
    )


def _even(even: Planted) -> Iterator[Check]:
    """Shares that add, of a change that is alike everywhere."""
    small, total = grafts(even), float(total_nats(even.logits("base"), even.logits("tuned")).mean())
    nats = [float(small.value([unit]).mean()) for unit in small.changes.units]
    ways = np.array([float(small.overlaps[frozenset([unit])].mean()) for unit in small.changes.units]) / total
    yield near("parts of the way in logits, of all units alone, summed: shares that add, of an even change", ways.sum(), 1, 0.02)
    yield above("effective number of units by them, of all", float(root(ways)) ** 2 / len(ways), 0.4)
    over = 1 - np.array(nats) / float(even.d_nats.mean()) - (1 - (1 - ways) ** 2)
    yield at_most(
        "share of D that a unit recovers, above 1 - (1 - s)^2 of its part s of the way: the known bend of a divergence", over, 0.01
    )


def p9(bench: Bench) -> Iterator[Check]:
    """Networks on the straight line from a base to a small fine-tune of it."""
    ends = bench.plant(edits.child(3, size=0.1 * float(next(bench.net.parameters()).detach().std())))

    def at(t: float) -> torch.Tensor:
        def between(net: edits.Net) -> None:
            for own, other in zip(net.parameters(), ends.tuned.net.parameters(), strict=True):
                own.lerp_(other, t)

        model = wrap(planted.edited(ends.base.net, between), side="tuned", ref=f"{t}")
        return torch.stack([capture(model, ids, [], [0]).logits for ids in ends.prompts]).double()

    laws = [at(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    from_base = [float(kl_nats(ends.logits("base"), law).mean()) for law in laws]
    from_tuned = [float(kl_nats(ends.logits("tuned"), law).mean()) for law in laws]
    yield at_most("KL from the base at the base, from the tuned model at the tuned model", [from_base[0], from_tuned[-1]], 0)
    yield above("steps of KL(base || between) on the way", np.diff(from_base), 0)
    yield above("steps of KL(tuned || between) on the way back", -np.diff(from_tuned), 0)


def p12(bench: Bench) -> Iterator[Check]:
    """Noise on the unembedding alone."""
    pair = bench.plant(edits.edit_unembedding, n_prompts=CKA_PROMPTS, prepare=edits.untie)
    yield above("D in nats", pair.d_nats.mean(), heard(bench))
    yield same("units of the network that changed", changed_units(pair), {"head"})
    yield near("CKA of resid_post, every block", list(cka(pair, "resid_post").values()), 1, 1e-12)
    yield near("share recovered by resid_post, every block", pair.recovery("resid_post"), 0, first_order(bench, pair))
    yield near("share of D that the grafted unembedding recovers", 1 - grafts(pair).value(grafts(pair).changes.units).mean() / pair.d_nats.mean(),
               1, 1e-6)  # fmt: skip


def p13(bench: Bench) -> Iterator[Check]:
    """Noise on the token embedding alone."""
    pair = bench.plant(edits.edit_embedding, prepare=edits.untie, whole=True)
    yield above("D in nats", pair.d_nats.mean(), heard(bench))
    yield same("units of the network that changed", changed_units(pair), {"embed"})
    whole = pair.recovery("resid_pre", positions="all", engine="full", layers=[0])
    yield near("share recovered by all positions of resid_pre of block 0", whole, 1, bench.rounding)
    part = pair.recovery("attn_out", positions="all", layers=[0])
    yield at_most("share recovered by all positions of attn_out of block 0", part, 0.99)


# ---- what the truths ask ---------------------------------------------------------------------------------------------------------------


def first_order_nats(bench: Bench, pair: Planted) -> float:
    """How far a recovery D - KL(tuned || run) that is 0 by construction may come out from it: it errs as float32 logits do, to the first order."""
    if bench.tiny:
        return 1e-6 * float(pair.d_nats.mean())
    return 4 * torch.finfo(torch.float32).eps * float(pair.logits("base").abs().max())


def first_order(bench: Bench, pair: Planted) -> float:
    """The same as a share of D."""
    return first_order_nats(bench, pair) / float(pair.d_nats.mean())


def heard(bench: Bench) -> float:
    """D in nats from which on shares of it can be told as exactly as the truths ask."""
    return 1e-3 if bench.tiny else 1e-5


def cka(pair: Planted, kind: str, metric: str = "cka") -> dict[int, float]:
    """A similarity of the decision states by block, without blocks where it is undefined: there states do not vary with the prompt."""
    states = {side: pair.states(side, kind) for side in ("base", "tuned")}
    defined = [
        layer for layer in range(pair.n_layers) if "cka" not in similarity_formula.undefined(*(one[layer] for one in states.values()))
    ]
    base, tuned = ({Site(layer, kind): one[layer] for layer in defined} for one in states.values())
    rows = similarity_formula.measure(base, tuned, [str(i) for i in range(len(pair.prompts))], "report")
    found = rows.filter((rows["metric"] == metric) & rows["control"].is_null())
    return dict(found.select("layer", "value").iter_rows())


def everywhere(pair: Planted, metric: str = "cka") -> list[float]:
    """The same at every block and site."""
    return [value for kind in pair.base.kinds() for value in cka(pair, kind, metric).values()]


def changed_units(pair: Planted) -> set[str]:
    """The parts of the network that are not bit for bit the same."""
    return names(changes_between(pair.base, tensors_of(pair.tuned)).units)


def matrices(pair: Planted) -> list[torch.Tensor]:
    """tuned - base of every matrix that changed."""
    both = zip(pair.base.net.parameters(), pair.tuned.net.parameters(), strict=True)
    return [(after - before).detach().double() for before, after in both if before.ndim == 2 and not torch.equal(before, after)]


def ranks(pair: Planted) -> set[int | None]:
    """Numerical ranks of the changed matrices."""
    both = zip(pair.base.net.parameters(), pair.tuned.net.parameters(), strict=True)
    changed = [(before, after.detach()) for before, after in both if before.ndim == 2 and not torch.equal(before, after)]
    deltas = [(after.double() - before.detach().double(), after) for before, after in changed]
    return {
        weights_spectra.spectrum(delta, floor=weights_spectra.rounding_floor(after, delta), exact_up_to=8192).numerical_rank
        for delta, after in deltas
    }


def grafts(pair: Planted) -> grafting_formula.Lattice:
    """Any set of changed units, grafted into the base."""
    prompts = Prompts(
        split="report", names=[str(i) for i in range(len(pair.prompts))], ids=[list(ids) for ids in pair.prompts],
        base_logits=pair.logits("base").float(), tuned_logits=pair.logits("tuned").float(),
    )  # fmt: skip
    return grafting_formula.lattice(pair.base, changes_between(pair.base, tensors_of(pair.tuned)), prompts)


def slope(values: list[float]) -> float:
    """Of the logarithms, over those of NOISE, by least squares."""
    return float(np.polyfit(np.log(NOISE), np.log(values), 1)[0])
