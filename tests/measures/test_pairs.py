"""Two outputs written together: blocks apart of which one undoes the other, two that add, what is chosen on which prompts, and what is said of it."""

import re
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl
import pytest
import torch

import every_measure
from mechdiff.architectures.sites import Site
from mechdiff.audit.rerun import Rerun
from mechdiff.labels import CROSSED
from mechdiff.measures.catalogue import AGAIN, CHAPTERS, EXPERIMENTS, make_study
from mechdiff.measures.patching import pairs
from mechdiff.report.parts import Run
from mechdiff.report.sections import lead
from mechdiff.rows import rows as rows_of
from mechdiff.rows import where
from mechdiff.store.run_folder import cell_hash
from mechdiff.store.tables import read_rows
from mechdiff.validate import made
from mechdiff.validate.planted import edited
from mechdiff.validate.studies import TEXTS, study
from runs import opened, run

PATCHING = {"patching": {"sites": ["mlp_out"], "arms": ["identity"], "pairs": 2, "map_prompts": 0}}
RECOVERY = CROSSED[1]


def halved_two_blocks_later() -> Any:
    """As `halving_net`, but that block 2 takes off half of what block 0 writes, not block 1: they are no neighbours."""
    net = made.halving_net()
    first, second = net.model.layers[1].mlp, net.model.layers[2].mlp
    with torch.no_grad():
        for name in ("gate_proj", "up_proj", "down_proj"):
            one, other = getattr(first, name).weight, getattr(second, name).weight
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
    return net


def write_twice(net: Any) -> None:
    """Blocks 0 and 2 write along the direction that logits read, a tenth of the stream each."""
    for layer, written in ((0, 0.4), (2, 0.2)):
        net.model.layers[layer].mlp.down_proj.bias[0] = written


def test_what_a_later_block_undoes_it_does_beyond_the_sum_of_both() -> None:
    """Of the base that runs: block 0's output alone goes all of the way (block 2 halves it), block 2's alone as far back, both together all of it."""
    base = halved_two_blocks_later()
    with study(base, edited(base, made.write_for_halving), measures=["divergence", PATCHING], texts=TEXTS * 2) as found:
        every = found.rows
    lines = {(r["direction"], r["name"]): r for r in pairs.of_strongest(every).iter_rows(named=True)}
    assert set(lines) == {(direction, "L0.mlp_out and L2.mlp_out") for direction in CROSSED}
    one = lines[RECOVERY, "L0.mlp_out and L2.mlp_out"]
    assert (one["first"], one["second"]) == (pytest.approx(1, abs=1e-3), pytest.approx(-1, abs=1e-3))
    assert (one["together"], one["value"]) == (pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))


def test_outputs_that_add_have_no_interaction() -> None:
    base = made.halving_net()
    with torch.no_grad():
        base.model.layers[1].mlp.down_proj.weight.zero_()
    with study(base, edited(base, write_twice), measures=["divergence", PATCHING], texts=TEXTS * 2) as found:
        every = found.rows
    lines = {r["direction"]: r for r in pairs.of_strongest(every).iter_rows(named=True)}
    assert set(lines) == set(CROSSED)
    for one in lines.values():
        assert one["first"] + one["second"] == pytest.approx(1, abs=0.02)
        assert one["value"] == pytest.approx(0, abs=0.02)


def moved(share: float, noise: float, **at: Any) -> pl.DataFrame:
    """Overlaps of sixteen prompts, of the base that runs where no other direction is named."""
    random = np.random.default_rng(crc32(str(at).encode()))
    values = TOTAL * (share + noise * random.standard_normal(16))
    told = {"measure": "patching", "direction": RECOVERY, "split": "report", "arm": "identity", "metric": "fisher_overlap_nats"}
    return rows_of(values, prompt=[f"p{i}" for i in range(16)], **(told | at))


TOTAL = 2 + np.random.default_rng(0).random(16)


def test_interactions_are_those_of_plain_sums_and_only_sure_ones_are_spoken_of() -> None:
    """Planted: A and B do 0.3 less together than alone, A and C as much; another split, a residual stream and a window are no part of it."""
    parts = [
        rows_of(TOTAL, measure="divergence", split="report", prompt=[f"p{i}" for i in range(16)], metric="fisher_total_nats"),
        moved(0.4, 0.01, layer=1, site="mlp_out"),
        moved(0.5, 0.01, layer=5, site="attn_out"),
        moved(0.2, 0.01, layer=7, site="mlp_out"),
        moved(0.9, 0.01, layer=7, site="resid_post"),
        moved(0.6, 0.01, unit="L1.mlp_out+L5.attn_out"),
        moved(0.6, 0.01, unit="L1.mlp_out+L7.mlp_out"),
        moved(0.9, 0.01, layer=1, site="mlp_out", unit="window 2"),
    ]
    table = pl.concat(parts)
    found = pairs.of_strongest(table)
    assert found["name"].to_list() == ["L1.mlp_out and L5.attn_out", "L1.mlp_out and L7.mlp_out"]
    mean = {
        (r["layer"], r["site"], r["unit"]): r["value"]
        for r in table.group_by("layer", "site", "unit").agg(pl.col("value").mean()).iter_rows(named=True)
    }
    expected = mean[None, None, "L1.mlp_out+L5.attn_out"] - mean[1, "mlp_out", None] - mean[5, "attn_out", None]
    assert found["value"][0] == pytest.approx(expected / TOTAL.mean(), rel=1e-12)
    assert found["value_low"][0] < -0.3 < found["value_high"][0]
    assert found["p"][0] < 0.01 < found["p"][1]
    (said,) = pairs.lead(Run(rows=table, summary=pl.DataFrame(), manifest={}))
    size = r"\d+(?:\.\d)? % \[95 % CI: [\d.]+, [\d.]+\]"
    alone = f"Patched into the base, L1.mlp_out alone goes {size} of the way in logits, L5.attn_out {size}, both together {size}"
    assert re.fullmatch(rf"{alone}: {size} less than the sum of both \(family-wise p = 0\.00\d+, 2 tested\)\.", said)
    quiet = Run(rows=table.filter(pl.col("unit").ne_missing("L1.mlp_out+L5.attn_out")), summary=pl.DataFrame(), manifest={})
    (said,) = pairs.lead(quiet)
    assert said.startswith("Of 1 pairs of the strongest outputs none was shown to do 1 % of the way")


@pytest.mark.parametrize(
    ("first", "second", "together", "says"),
    [
        (1.0, -1.0, 1.0, "more than the sum of both ("),  # one goes all of the way, the other undoes it
        (-0.3, -0.2, -0.6, "less than the sum of both ("),  # both back, and further together
        (0.05, 0.6, 0.3, "less than the sum of both ("),
        (0.6, 0.58, 0.62, "less than the sum of both, so either will do ("),
        (-0.6, -0.58, -0.62, "more than the sum of both, so either will do ("),
        (0.02, -0.03, 0.8, "more than the sum of both, so they need each other ("),
        (0.3, 0.3, 0.9, "more than the sum of both ("),
    ],
)
def test_the_sign_of_an_interaction_does_not_say_what_each_alone_does(first: float, second: float, together: float, says: str) -> None:
    """It was said of the first that they need each other, and of the next two that either will do."""
    parts = [
        rows_of(TOTAL, measure="divergence", split="report", prompt=[f"p{i}" for i in range(16)], metric="fisher_total_nats"),
        moved(first, 0.002, layer=1, site="mlp_out"),
        moved(second, 0.002, layer=5, site="attn_out"),
        moved(together, 0.002, unit="L1.mlp_out+L5.attn_out"),
    ]
    run = Run(rows=pl.concat(parts), summary=pl.DataFrame(), manifest={})
    (said,) = pairs.lead(run)
    plain = re.sub(r" \[95 % CI: [^]]*\]", "", said).replace("−", "-")
    assert says in plain
    said_numbers = [float(number) / 100 for number in re.findall(r"(?<= )(-?\d+(?:\.\d)?) %", plain)]
    assert said_numbers[:4] == pytest.approx([first, second, together, abs(together - first - second)], abs=0.01)
    (line,) = pairs.parts(run)[0]["rows"]
    assert [float(str(cell).split(" %")[0].replace("−", "-")) / 100 for cell in line[2:5]] == pytest.approx(
        [first, second, together], abs=0.01
    )


def test_pairs_of_both_directions_are_one_family() -> None:
    """One sentence is of either direction: under the null p < 0.05 is to come up for any of both in a twentieth of runs, not in a tenth."""
    both = [
        moved(0.4, 0.05, layer=layer, site="mlp_out", direction=direction)
        for direction, layers in zip(CROSSED, (range(6), (1, 5)), strict=True)
        for layer in layers
    ]
    both += [moved(0.8, 0.05, unit=f"L{i}.mlp_out+L{j}.mlp_out", direction=CROSSED[0]) for j in range(6) for i in range(j)]
    both.append(moved(0.72, 0.05, unit="L1.mlp_out+L5.mlp_out", direction=RECOVERY))
    total = rows_of(TOTAL, measure="divergence", split="report", prompt=[f"p{i}" for i in range(16)], metric="fisher_total_nats")
    one = pairs.of_strongest(pl.concat([total, *both[6:8], both[-1]]))
    two = pairs.of_strongest(pl.concat([total, *both])).filter(pl.col("direction") == CROSSED[1])
    for name in ("first", "second", "together", "value", "value_low", "value_high"):
        assert two[name].item() == pytest.approx(one[name].item())
    assert two["p"].item() > one["p"].item()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    every_measure.made(folder)
    run(config(folder, 3), out=folder / "run", page=False)
    return folder


def config(folder: Path, n: int, splits: tuple[str, ...] = ("fit", "select", "report")) -> Any:
    prompts = {split: str(folder / f"{split}.jsonl") for split in splits}
    measures: list[Any] = [{"divergence": {"over_text": False}}, {"patching": {"arms": ["identity"], "pairs": n, "map_prompts": 0}}]
    pair = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
    return make_study({"pair": pair, "prompts": prompts, "measures": measures, "answers": {"tokens": 0}})


def test_the_strongest_outputs_of_the_select_prompts_are_written_and_whole_passes_agree(finished: Path) -> None:
    every = read_rows(finished / "run")
    together = every.filter(pl.col("measure") == "patching", pl.col("unit").fill_null("").str.contains("+", literal=True))
    assert together["split"].unique().to_list() == ["report"]
    on_select = where(every, measure="patching", split="select", metric="fisher_overlap_nats", control=None, unit=None)
    means = (
        on_select.filter(pl.col("site").is_in(["attn_out", "mlp_out"]))
        .group_by("layer", "site", "direction")
        .agg(pl.col("value").mean().abs())
    )
    strength = means.group_by("layer", "site").agg(pl.col("value").mean()).sort("value", descending=True)
    first = sorted(Site(layer, site) for layer, site in strength.head(3).select("layer", "site").iter_rows())
    units = {f"{first[i]}+{first[j]}" for i in range(3) for j in range(i + 1, 3)}
    assert set(together["unit"]) == units
    rerun = Rerun(finished / "run", EXPERIMENTS, "cpu")
    for row in (
        together.filter(pl.col("metric").is_in(["kl_own_nats", "kl_other_nats", "fisher_overlap_nats"]))
        .sample(9, seed=1)
        .iter_rows(named=True)
    ):
        assert AGAIN["patching"](rerun, row) == pytest.approx(row["value"], rel=2e-3, abs=2e-5), row
    from mechdiff.report.parts import load

    content = load(finished / "run")
    tables = pairs.parts(content)
    assert len(tables) == 1
    assert len(tables[0]["rows"]) == 6
    tested = pairs.of_strongest(content.rows).filter(pl.col("p").is_not_null())
    assert len(pairs.lead(content)) == (not tested.is_empty())
    assert set(pairs.lead(content)) <= set(lead(content, CHAPTERS["patching"]))


def test_pairs_need_prompts_to_be_chosen_on(finished: Path) -> None:
    with opened(config(finished, 3, ("fit", "report")), finished / "unrun", device="cpu") as (prepared, _):
        said = {one["what"]: one["why"] for one in prepared.plan.skipped}
        assert said["pairs of the strongest outputs"] == "the study has no validation prompts, on which they are chosen"
        assert not [cell for cell in prepared.plan.cells if cell.stage == "pairs"]
    with opened(config(finished, 0), finished / "none", device="cpu") as (prepared, _):
        assert not [cell for cell in prepared.plan.cells if cell.stage == "pairs"]


def keys(finished: Path, **patching: Any) -> dict[str, set[str]]:
    """By stage, the hashes of the cells' keys that are planned with these options of patching."""
    prompts = {split: str(finished / f"{split}.jsonl") for split in every_measure.SPLITS}
    measures: list[Any] = [{"patching": {"arms": ["identity"], "map_prompts": 0} | patching}, "transport", "off_manifold"]
    models = {"base": str(finished / "base"), "tuned": str(finished / "tuned")}
    asked = make_study({"pair": models, "prompts": prompts, "measures": measures, "answers": {"tokens": 0}})
    found: dict[str, set[str]] = {}
    with opened(asked, finished / f"unrun {len(list(finished.iterdir()))}", device="cpu") as (prepared, _):
        for cell in prepared.plan.cells:
            found.setdefault(cell.stage, set()).add(cell_hash(cell.key))
    return found


def test_a_key_holds_what_decides_the_choice_and_nothing_else(finished: Path) -> None:
    """Pairs chosen over both directions had the key of those chosen over one, and other pairs renewed every cell of the closer layers."""
    plain, one_way, none, wide, fewer = (
        keys(finished, **given) for given in ({}, {"directions": [RECOVERY]}, {"pairs": 0}, {"windows": [2]}, {"layers": [0, 1]})
    )
    assert plain["pairs"]
    assert one_way["pairs"]
    assert not plain["pairs"] & one_way["pairs"], "they are the strongest of both directions, or of one"
    closer = {stage for stage in plain if stage in ("closer", "steering", "off_manifold", "mapped_positions")}
    assert {"closer", "off_manifold"} <= closer
    for stage in closer:
        assert plain[stage] == none[stage] == wide[stage], stage
        assert not plain[stage] & one_way[stage], stage
        assert not plain[stage] & fewer[stage], stage
