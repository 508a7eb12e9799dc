"""What a user saw: "arithmetic is more distributed than kazakh", read off the size of D: one fine-tune, made stronger, was less distributed."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from mechdiff.api import compare
from mechdiff.comparison.compare import Comparison, beside, sections
from mechdiff.comparison.words import verdict
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.overlap import overlap_nats, total_nats
from mechdiff.measures.catalogue import BETWEEN_RUNS
from mechdiff.measures.grafting import compare as grafting_compare
from mechdiff.measures.rank import compare as rank_compare
from mechdiff.rows import OVERLAP, TOTAL, rows
from mechdiff.validate import edits, made, planted
from report.planted_compare import KINDS, LOCAL, N_LAYERS, SPREAD, Planted, manifest_of, write_planted
from report.planted_compare import planted as planted_rows

pytestmark = pytest.mark.ci

N = 12


def table_of(base: Tensor, tuned: Tensor, runs: dict[str, dict[tuple[int, str], Tensor]]) -> pl.DataFrame:
    """Rows of a study whose patches gave these logits `[prompt, vocab]`, by the model that runs and the site."""
    names = [f"report-{i:03d}" for i in range(len(base))]
    place = {"split": "report", "prompt": names}
    tables = [
        rows(values.numpy(), measure="divergence", metric=metric, **place)
        for metric, values in (("kl_tuned_base_nats", kl_nats(tuned, base)), (TOTAL, total_nats(base, tuned)))
    ]
    for side, direction in (("tuned", "tuned<-base"), ("base", "base<-tuned")):
        own, other = (tuned, base) if side == "tuned" else (base, tuned)
        noise = {"measure": "patching", "direction": direction, "control": "no_op", **place}
        tables.append(rows(np.full(len(base), 1e-12), metric="kl_own_nats", **noise))
        for (layer, kind), logits in runs[side].items():
            at = {"measure": "patching", "direction": direction, "layer": layer, "site": kind, "arm": "identity", **place}
            effect = ("kl_own_nats", kl_nats(own, logits)) if side == "tuned" else ("kl_other_nats", kl_nats(tuned, logits))
            for metric, values in (effect, (OVERLAP, overlap_nats(logits[:, None], own, other)[:, 0])):
                tables.append(rows(values.numpy(), metric=metric, **at))
    return pl.concat(tables, rechunk=True)


def linear(strength: float, seed: int = 0) -> pl.DataFrame:
    """A network whose logits are a sum over its 12 sites, each with its share of one direction and something of its own, at some strength."""
    random = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.75**i for i in range(2 * N_LAYERS)], dtype=torch.float64)
    base = 2 * torch.randn(N, 200, generator=random, dtype=torch.float64)
    common, own = (torch.randn(N, k, 200, generator=random, dtype=torch.float64) for k in (1, 2 * N_LAYERS))
    parts = strength * shares[:, None] * (common + 0.3 * own)
    tuned = base + parts.sum(1)
    sites = [(layer, kind) for layer in range(N_LAYERS) for kind in KINDS]
    return table_of(base, tuned, {
        "base": {site: base + parts[:, i] for i, site in enumerate(sites)},
        "tuned": {site: tuned - parts[:, i] for i, site in enumerate(sites)},
    })  # fmt: skip


def noised(layers: list[int], size: float) -> pl.DataFrame:
    """The tiny network with rank-4 noise of this size in every matrix of some layers, patched through the engine."""

    def change(net: edits.Net) -> None:
        for layer in layers:
            for i, weight in enumerate(p for p in net.model.layers[layer].parameters() if p.ndim == 2):
                edits.add_low_rank(weight, 4, size, seed=100 * layer + 2 * i)

    pair = planted.plant(change, prompts=made.token_prompts(N, seed=1), whole=False)
    runs: dict[str, dict[tuple[int, str], Tensor]] = {"base": {}, "tuned": {}}
    for side, direction in (("tuned", "tuned<-base"), ("base", "base<-tuned")):
        for kind in KINDS:
            found = pair.patched(direction, kind)
            runs[side] |= {(layer, kind): found[:, layer] for layer in range(pair.n_layers)}
    return table_of(pair.logits("base"), pair.logits("tuned"), runs)


def run_of(folder: Path, name: str, table: pl.DataFrame) -> Path:
    return write_planted(folder / name, Planted(n=N), manifest=manifest_of(name), table=table)


def compared(runs: list[Path]) -> Comparison:
    """Without its page."""
    return Comparison(runs[0].parent, beside(runs, BETWEEN_RUNS))


def numbers(found: Comparison, quantity: str) -> list[dict]:
    return found.table().filter(pl.col("quantity") == quantity, pl.col("against").is_null()).to_dicts()


# ---- one fine-tune at two sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strengths", [(0.05, 0.4), (0.4, 8.0), (0.05, 8.0)])
def test_one_fine_tune_at_two_strengths_is_not_called_more_or_less_distributed(strengths: tuple[float, float], tmp_path: Path) -> None:
    found = compared([run_of(tmp_path, f"x{s:g}", linear(s)) for s in strengths])
    d = [one["value"] for one in numbers(found, "D")]
    assert max(d) > 7 * min(d), "the two differ in size"
    first, second = numbers(found, "effective sites")
    assert first["low"] <= second["value"] <= first["high"]
    assert second["low"] <= first["value"] <= second["high"]
    assert first["value"] == pytest.approx(second["value"], rel=0.1)
    assert not any("more distributed" in sentence for sentence in found.verdict())


def test_by_kl_the_same_fine_tune_has_another_number_of_sites_and_the_table_says_at_which_d(tmp_path: Path) -> None:
    found = compared([run_of(tmp_path, "weak", linear(0.05)), run_of(tmp_path, "strong", linear(8.0))])
    weak, strong = numbers(found, "effective sites by KL, KL increase")
    assert max(weak["value"], strong["value"]) > 1.3 * min(weak["value"], strong["value"]), "why no sentence is made of it"
    assert weak["where"].startswith("at D = ")
    assert weak["where"] != strong["where"]
    assert not any("KL" in sentence for sentence in found.verdict())


# ---- two that are known to differ ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One layer and all layers of the tiny network, each weak and strong: D about 20 times apart."""
    folder = tmp_path_factory.mktemp("known")
    sizes = {"one layer, weak": ([2], 0.2), "one layer, strong": ([2], 1.0), "all layers, weak": ([0, 1, 2, 3], 0.05),
             "all layers, strong": ([0, 1, 2, 3], 0.35)}  # fmt: skip
    return {name: run_of(folder, name, noised(layers, size)) for name, (layers, size) in sizes.items()}


@pytest.mark.parametrize("one", ["one layer, weak", "one layer, strong"])
@pytest.mark.parametrize("many", ["all layers, weak", "all layers, strong"])
def test_a_change_of_one_layer_and_one_of_all_are_told_apart_whichever_is_larger(one: str, many: str, known: dict[str, Path]) -> None:
    found = beside([known[one], known[many]], BETWEEN_RUNS)
    sizes = {name: next(q.estimate.value for q in found.found[name] if q.key == ("size", "D")) for name in (one, many)}
    if one.endswith("weak") != many.endswith("weak"):
        assert max(sizes.values()) > 12 * min(sizes.values())
    assert verdict(found)[0].startswith(f"{many} is more distributed than {one}")


@pytest.mark.parametrize("kind", ["one layer", "all layers"])
def test_the_same_layers_weak_and_strong_are_not_told_apart(kind: str, known: dict[str, Path]) -> None:
    found = beside([known[f"{kind}, weak"], known[f"{kind}, strong"]], BETWEEN_RUNS)
    assert not any("more distributed" in sentence for sentence in verdict(found))


# ---- where nothing can be said -------------------------------------------------------------------------------------------------------


def test_runs_with_shares_of_kl_alone_are_not_called_more_distributed_and_it_is_said_why(tmp_path: Path) -> None:
    old = {name: planted_rows(Planted(sites=sites, n=N)).filter(~pl.col("metric").is_in([OVERLAP, TOTAL]))
           for name, sites in (("local", LOCAL), ("wide", SPREAD))}  # fmt: skip
    found = compared([run_of(tmp_path, name, table) for name, table in old.items()])
    said = " ".join(found.verdict())
    assert "more distributed" not in said
    assert "cannot be said of local and wide" in said
    assert "Run it again" in said
    assert not numbers(found, "effective sites")
    assert len(numbers(found, "effective sites by KL, KL increase")) == 2
    mixed = beside([run_of(tmp_path, "new", planted_rows(Planted(sites=SPREAD, n=N))), tmp_path / "local"], BETWEEN_RUNS)
    assert "cannot be said of local: " in " ".join(verdict(mixed))


def test_effects_that_are_noise_are_not_called_distributed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = {}
    for name, sites in (("local", LOCAL), ("noise", SPREAD)):
        table = planted_rows(Planted(sites=sites, n=N))
        if name == "noise":
            values = rng.normal(size=len(table))
            table = table.with_columns(value=pl.when(pl.col("metric") == OVERLAP).then(pl.lit(pl.Series(values))).otherwise("value"))
        tables[name] = table
    found = beside([run_of(tmp_path, name, table) for name, table in tables.items()], BETWEEN_RUNS)
    said = verdict(found)
    assert not any("more distributed" in sentence for sentence in said)
    assert any("no number (the sum of the parts' effects is not significant (p > 0.05))" in sentence for sentence in said)
    text = str([part for section in sections(found, BETWEEN_RUNS) for part in section.parts])
    assert "nothing there: " in text, "beside 'all alike' stands the other null"


def test_breakage_and_recovery_are_given_apart_and_not_averaged(tmp_path: Path) -> None:
    found = beside([run_of(tmp_path, name, linear(s)) for name, s in (("weak", 0.05), ("strong", 8.0))], BETWEEN_RUNS)
    names = {one.name for one in found.found["weak"] if one.axis == "where"}
    assert {"effective sites by KL, KL increase", "effective sites by KL, recovery"} <= names
    assert not [one.name for one in found.main if "KL" in one.name], "no claim is made of them"


def test_a_participation_ratio_is_not_called_a_rank(tmp_path: Path) -> None:
    """The report gave rank 10 and the comparison "effective rank" 1.03 at one site: two numbers, one name."""
    found = compare(
        *(write_planted(tmp_path / name, Planted(sites=SPREAD, n=N, seed=seed)) for name, seed in (("one", 1), ("two", 2))),
        out=tmp_path / "out",
    )
    named = found.table().filter(pl.col("axis") == "rank")["quantity"].unique().to_list()
    assert named == [grafting_compare.DIMENSIONS.name]
    for name in (grafting_compare.DIMENSIONS.name, rank_compare.DIMENSIONS.name):
        assert "rank" not in name
        assert "participation ratio" in name
    assert "effective rank" not in found.report().read_text(encoding="utf-8").lower()
    assert not any(" rank" in sentence for sentence in found.verdict())
