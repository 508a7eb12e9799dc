"""Truths of weights are read from files as a run reads them (METHOD C: P1, P5, P10, P11, P19), or hold on the way between two networks (P23)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

from mechdiff import labels
from mechdiff.architectures.network import quiet
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.grafts import grafted
from mechdiff.engine.outcome import CleanLogits
from mechdiff.measures.grafting import formula as grafting_formula
from mechdiff.measures.grafting.formula import Prompts
from mechdiff.measures.interpolation import formula as interpolation
from mechdiff.measures.weights import formula as weights_formula
from mechdiff.models.changes import open_changes
from mechdiff.models.lineage import lineage
from mechdiff.models.modules import ChangedUnits, changes_between, changes_of_adapter, tensors_of
from mechdiff.models.pair import wrap
from mechdiff.models.sources import Source
from mechdiff.models.switches import attach_adapter
from mechdiff.validate import edits, planted
from mechdiff.validate.checks import Check, above, at_most, names, near, same
from mechdiff.validate.edits import Edit, Net
from mechdiff.validate.planted import Bench
from mechdiff.validate.truths import grafts

LORA_BLOCK = 2
LORA = {f"model.layers.{LORA_BLOCK}.self_attn.{part}_proj.weight" for part in "qv"}
"""P5's tensors."""


def p1(bench: Bench) -> Iterator[Check]:
    """The residual stream in another orthogonal basis."""
    with stored(bench, edits.rotate, prepare=edits.fold_norms) as found:
        matrices = [value for name, value in of(found, "relative_norm").items() if "norm" not in name]
        yield near("change of each matrix, relative to its norm: as far as a stranger's", matrices, 2**0.5, 0.1)


def p5(bench: Bench) -> Iterator[Check]:
    """A LoRA of rank 4 on queries and values of one block, merged, and as an adapter."""
    with stored(bench, edits.merged_lora()) as found:
        yield same("tensors that changed", moved(found), LORA)
        yield same("their rank, merged in float32", set(of(found, "numerical_rank").values()), {4})
    with stored(bench, edits.merged_lora(torch.bfloat16), prepare=lambda net: net.bfloat16().float()) as found:
        cliff = [values[3] / values[4] for values in found["spectra"].values()]
        yield same("their rank, merged in bfloat16", set(of(found, "numerical_rank").values()), {4})
        yield above("fourth singular value over the fifth: the cliff over the rounding", cliff, 5)
    pair = bench.plant(edits.merged_lora())
    lattice = grafts(pair)
    yield same("units of the network that changed", names(lattice.changes.units), {f"L{LORA_BLOCK}.attn"})
    yield at_most("KL in nats with that unit grafted", lattice.value(lattice.changes.units), 1e-10)
    yield from _adapter(bench)


def _adapter(bench: Bench) -> Iterator[Check]:
    from peft import LoraConfig, get_peft_model

    with TemporaryDirectory() as place, quiet():
        adapted = get_peft_model(planted.edited(bench.net, edits.identical), LoraConfig(
            r=4, target_modules=["q_proj", "v_proj"], layers_to_transform=[LORA_BLOCK]))  # fmt: skip
        for seed, (name, parameter) in enumerate(adapted.named_parameters()):
            if "lora" in name:
                parameter.data = edits.noise(parameter.shape, seed) * 0.2
        base, adapter = _saved(bench.net, Path(place) / "base"), Path(place) / "adapter"
        adapted.save_pretrained(adapter, save_embedding_layers=False)
        changes = open_changes(base, Source(ref="adapter", load=base.load, adapter=adapter))
        rows, _ = weights_formula.measure(changes, bench.net.config)
        found = {"rows": rows}
        yield same("an adapter's tensors that changed, read without merging", moved(found), LORA)
        yield same("their rank", set(of(found, "numerical_rank").values()), {4})
        attached: Any = attach_adapter(planted.edited(bench.net, edits.identical), adapter)
        attached.base_model.disable_adapter_layers()
        model = wrap(attached.get_base_model(), side="base", ref="adapted")
        pair = bench.plant(lambda net: _merge(net, adapted))
        switched = changes_of_adapter(model)
        prompts = Prompts(
            split="report", names=[str(i) for i in range(len(pair.prompts))], ids=[list(ids) for ids in pair.prompts],
            base_logits=pair.logits("base").float(), tuned_logits=pair.logits("tuned").float(),
        )  # fmt: skip
        lattice = grafting_formula.lattice(model, switched, prompts)
        yield above("D in nats", pair.d_nats.mean(), 1e-3)
        yield at_most("KL in nats with the adapter's layers of that block switched on", lattice.value(switched.units), 1e-10)


def p10(bench: Bench) -> Iterator[Check]:
    """Every head's values in another basis, undone in its output matrix."""
    with stored(bench, edits.turn_head_values) as found:
        outputs = [value for name, value in of(found, "relative_norm").items() if "o_proj" in name]
        yield above("change of each output matrix, relative to its norm", outputs, 1)
        yield at_most("change of any head's OV product", list(of(found, "ov_relative_norm").values()), 1e-6)
        yield at_most("change of any head's QK product", list(of(found, "qk_relative_norm").values()), 0)


def p11(bench: Bench) -> Iterator[Check]:
    """The neurons of every MLP in another order, their weights rescaled: the same function."""
    with stored(bench, edits.shuffle_neurons) as found:
        expected = {f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(edits.N_LAYERS) for part in ("down", "gate", "up")}
        yield same("tensors that changed and are not the MLPs', or the other way round", moved(found) ^ expected, set())
        yield above("change of each, relative to its norm", [of(found, "relative_norm")[name] for name in moved(found)], 1.2)
    pair = bench.plant(edits.shuffle_neurons)
    yield at_most("D in nats", pair.d_nats, 1e-10)
    yield at_most("KL of any MLP's output patched in nats", pair.breakage("mlp_out"), 1e-10)
    apart = (pair.states("base", "mlp_out") - pair.states("tuned", "mlp_out")).abs().max() / pair.states("base", "mlp_out").abs().max()
    yield at_most("change of the MLPs' outputs, relative", apart, 1e-5)


def p19(bench: Bench) -> Iterator[Check]:
    """Two fine-tunes A + U and A + V of one model A, the first given as the base of the second."""
    with TemporaryDirectory() as place:
        parent, first, second = (
            _saved(net, Path(place) / name)
            for name, net in (("A", bench.net), *((f"A{seed}", planted.edited(bench.net, edits.child(seed))) for seed in (1, 2)))
        )
        wrong, right = lineage(first, second, [parent]), lineage(parent, second, [first])
        yield same("warned that the first is not the base, with A at hand", "nearer to A " in " ".join(wrong["warnings"]), True)
        yield same("warnings with A as the base", right["warnings"], [])
        yield near(
            "distance from sibling to sibling, over that from A", wrong["relative_distance"] / right["relative_distance"], 2**0.5, 0.05
        )
        u, v, across = (
            {one.name: one.delta(torch.float64) for one in open_changes(*pair)}
            for pair in ((parent, first), (parent, second), (first, second))
        )
        off = [(across[name] - (v[name] - u[name])).abs().max() for name in across]
        yield at_most("change from sibling to sibling less (V - U), any entry", off, 1e-15)


WAY = (-0.5, 0.25, 0.5, 0.75, 1.5, 2.0)
"""Strengths at which D(a) is held against its closed form."""
NEAR = (0.2, 0.1, 0.05, 0.025)
"""Distances from the tuned model on the way to it."""


def p23(bench: Bench) -> Iterator[Check]:
    """One row of the unembedding scaled: one logit z_v becomes z_v + d."""
    pair = bench.plant(edits.scale_token, prepare=edits.untie)
    clean = CleanLogits(base=pair.logits("base").float(), tuned=pair.logits("tuned").float())
    changes = changes_between(pair.base, tensors_of(pair.tuned))
    d = (edits.TIMES - 1) * pair.logits("base")[:, edits.TOKEN]
    expected = torch.cat([_one_logit(pair.logits("base"), d, a) for a in WAY])
    yield above("D in nats", pair.d_nats.mean(), 1e-5)
    for form, found in (("logits", interpolation.of_logits(clean, WAY)),
                        ("weights", interpolation.of_weights(pair.base, changes, pair.prompts, WAY))):  # fmt: skip
        left = torch.cat([kl_nats(clean.tuned, logits.to(clean.tuned.device)) for _, logits in found])
        off = (left - expected).abs() / (expected + 1e-5)
        yield at_most(f"D(a) by {form} off its closed form, as a share of itself + 1e-5 nats, at a = {', '.join(map(str, WAY))}", off, 1e-4)
    for side, strength in (("base", 0.0), ("tuned", 1.0)):
        network = pair.base if side == "base" else pair.tuned
        nothing = ChangedUnits(units=())
        alone = next(logits for _, logits in interpolation.of_weights(network, nothing, pair.prompts, [0.0]))
        mixed = next(logits for _, logits in interpolation.of_weights(pair.base, changes, pair.prompts, [strength]))
        between = next(logits for _, logits in interpolation.of_logits(clean, [strength]))
        other = int((mixed != alone).sum()) + int((between != clean.of(side)).sum())
        yield same(f"logits at a = {strength:g} that are not the {side} model's to the bit, by weights and logits", other, 0)
    small = bench.plant(edits.child(3, size=0.1 * float(next(bench.net.parameters()).detach().std())))
    moved = changes_between(small.base, tensors_of(small.tuned))
    alone_at = dict(interpolation.of_weights(small.base, moved, small.prompts, [0.0, 1.0], moved.units[1:2]))
    still = next(logits for _, logits in interpolation.of_weights(small.base, ChangedUnits(units=()), small.prompts, [0.0]))
    with grafted(small.base, moved, moved.units[1:2]):
        graft = next(logits for _, logits in interpolation.of_weights(small.base, ChangedUnits(units=()), small.prompts, [0.0]))
    apart = [int((alone_at[0.0] != still).sum()), int((alone_at[1.0] != graft).sum())]
    yield same(
        f"logits with {moved.units[1]} moved alone that at a = 0 are not the base's, and at a = 1 not its graft's, to the bit",
        apart,
        [0, 0],
    )
    yield above("KL of that graft from the base in nats", kl_nats(still, graft).mean(), 0)
    ways = interpolation.of_weights(small.base, moved, small.prompts, [1 - e for e in NEAR])
    falling = [float(kl_nats(small.logits("tuned").float(), logits).mean()) for _, logits in ways]
    yield near("slope of log D(a) over log (1 - a) near the tuned model, every tensor moved at random",
               float(np.polyfit(np.log(NEAR), np.log(falling), 1)[0]), 2, 0.15)  # fmt: skip


def _one_logit(base: torch.Tensor, d: torch.Tensor, a: float) -> torch.Tensor:
    """KL of the distribution whose one logit is d higher from that where it is a d higher: from p_v of the base and d alone."""
    p = base.softmax(-1)[:, edits.TOKEN]
    whole, here = 1 + p * torch.expm1(d), 1 + p * torch.expm1(a * d)
    return p * d.exp() / whole * (1 - a) * d - whole.log() + here.log()


# ---- what the truths ask ---------------------------------------------------------------------------------------------------------------


@contextmanager
def stored(bench: Bench, change: Edit, *, prepare: Edit | None = None) -> Iterator[dict[str, Any]]:
    """Rows and spectra of the measure of weights on the pair's files."""
    with TemporaryDirectory() as place:
        net = planted.edited(bench.net, prepare) if prepare else bench.net
        changes = open_changes(_saved(net, Path(place) / "base"), _saved(planted.edited(net, change), Path(place) / "tuned"))
        rows, spectra = weights_formula.measure(changes, net.config)
        yield {"rows": rows, "spectra": {name: np.asarray(values, float) for name, values in spectra.items()}}


def _saved(net: Net, folder: Path) -> Source:
    with quiet():
        net.save_pretrained(folder)
    return Source(ref=folder.name, load=str(folder))


def _merge(net: Net, adapted: Any) -> None:
    """The adapter's changes added to the weights."""
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            net.get_submodule(name).weight.add_(module.get_delta_weight("default"))


def of(found: dict[str, Any], metric: str) -> dict[str, float]:
    """Tensor or head -> value."""
    one = found["rows"].filter(pl.col("metric") == metric)
    return {_name(layer, unit): value for layer, unit, value in one.select("layer", "unit", "value").iter_rows()}


def _name(layer: int | None, unit: str) -> str:
    return f"L{layer}.{unit}" if labels.head_of(unit) is not None else unit


def moved(found: dict[str, Any]) -> set[str]:
    """Tensors of which an entry differs."""
    return {name for name, value in of(found, "relative_norm").items() if value > 0}
