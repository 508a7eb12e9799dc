"""Heads and attribution as parts of a run: the edited head is found, rows keep the contract, choices are those of select."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import pico
from mechdiff.api import Run
from mechdiff.audit.rerun import Rerun
from mechdiff.errors import PromptError, StudyError
from mechdiff.labels import WITHIN, player_name
from mechdiff.measures.attribution.page import attribution
from mechdiff.measures.catalogue import AGAIN, EXPERIMENTS
from mechdiff.measures.heads import choices as heads_choices
from mechdiff.report.parts import load
from mechdiff.rows import KEY
from mechdiff.spacing import evenly_spaced
from mechdiff.study.cells import Item
from mechdiff.study.config import RunOptions
from mechdiff.validate import edits
from runs import run
from tokenizers_made import CHATML, byte_tokenizer

N_LAYERS, N_HEADS, HEAD = 4, 4, 3
LAYER = 3
"""The last block: above it nothing reads earlier positions, so the decision position tells all."""
HEADS: dict[str, Any] = {"null_edits": 2, "network_draws": 3, "attention_prompts": 3, "z_swap": [0.5, 1.0], "top": 3, "picks": 3}
FEWER: dict[str, Any] = {"layers": [1, 3], "closer": [3], "null_edits": 1, "network_draws": 1}


def edit_one_head(net: Any) -> None:
    """The columns of one head in W_O of the last block."""
    weight = net.model.layers[LAYER].self_attn.o_proj.weight
    edits.add_noise_to(weight[:, HEAD * 8 : (HEAD + 1) * 8], 0.8)


def finish(pair: Path, out: Path, *measures: Any, tuned: str = "tuned", page: bool = True, **options: Any) -> Run:
    return run(
        base=str(pair / "base"), tuned=str(pair / tuned), prompts=pair / "prompts.jsonl", measures=["divergence", *measures], out=out,
        page=page, options=RunOptions(**options),
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_head(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Run:
    folder = tmp_path_factory.mktemp("one_head")
    base = pico.pico("llama")
    for name, net in (("base", base.net), ("tuned", pico.twin(base, edit_one_head).net)):
        pico.save(net, byte_tokenizer(CHATML), folder / name)
    (folder / "prompts.jsonl").write_text((pair / "prompts.jsonl").read_text())
    measures = ({"transport": {"sites": ["z"], "maps": ["rrr"], "permutations": 0}}, {"heads": HEADS}, {"attribution": {"validated": 3}})
    return finish(folder, folder / "run", *measures)


def of(finished: Run, measure: str = "heads", **where: Any) -> pl.DataFrame:
    rows = finished.rows().filter(pl.col("measure") == measure)
    return rows.filter(*(pl.col(name).eq_missing(value) for name, value in where.items()))


def test_rows_are_unique_and_every_kind_is_there(one_head: Run) -> None:
    rows = of(one_head)
    assert len(rows.unique(subset=KEY)) == len(rows)
    assert set(rows["arm"].unique()) == {"contribution", "routing", "write", "z_swap", "rrr", None}
    kinds = rows["control"].str.replace(r"#\d+$", "").unique().to_list()
    assert set(kinds) == {None, "no_op", "random_set", "random_vector"}
    assert set(rows["metric"].unique()) >= {"kl_own_nats", "kl_other_nats", "fisher_nats", "shapley_nats", "attention_js_nats"}
    singles = rows.filter(
        pl.col("arm") == "contribution", pl.col("split") == "report", pl.col("metric") == "top1_same", pl.col("site") == "attn_proj"
    )
    assert singles.group_by("layer", "direction").agg(pl.col("unit").n_unique())["unit"].unique().to_list() == [N_HEADS + 2 + 1]
    assert set(rows.filter(pl.col("layer").is_null())["site"].unique()) == {"attn_proj", None} | {None}


def test_the_edited_head_is_the_effect_of_its_layer(one_head: Run) -> None:
    here = of(one_head, direction="tuned<-base", split="report", layer=LAYER, site="attn_proj", arm="contribution", control=None)
    kl = here.filter(pl.col("metric") == "kl_own_nats").group_by("unit").agg(pl.col("value").mean())
    by_unit = dict(kl.iter_rows())
    assert by_unit["all"] > 1e-3
    assert by_unit[f"head {HEAD}"] == pytest.approx(by_unit["all"], rel=1e-4)
    assert by_unit["group 1"] == pytest.approx(by_unit["all"], rel=1e-4)
    assert max(by_unit[f"head {head}"] for head in range(N_HEADS) if head != HEAD) < 1e-9
    shapley = here.filter(pl.col("metric") == "shapley_nats").pivot(on="unit", index="prompt", values="value")
    everyone = here.filter(pl.col("metric") == "kl_own_nats", pl.col("unit") == "all").select("prompt", v="value")
    both = shapley.join(everyone, on="prompt")
    np.testing.assert_allclose(both[f"head {HEAD}"], both["v"], rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(both.select(pl.sum_horizontal(pl.col("^head .*$"))).to_series(), both["v"], rtol=1e-4, atol=1e-9)
    fisher = dict(here.filter(pl.col("metric") == "fisher_nats").group_by("unit").agg(pl.col("value").mean()).iter_rows())
    assert fisher[f"head {HEAD}"] == pytest.approx(fisher["all"], rel=1e-4)


def test_what_is_chosen_on_select_names_the_head(one_head: Run) -> None:
    said = one_head.manifest()["heads"]
    assert LAYER in said["closer_layers"]
    assert said["chosen"] == "select"
    assert (said["n_heads"], said["n_groups"], said["heads_per_group"]) == (4, 2, 2)
    for direction in ("tuned<-base", "base<-tuned"):
        assert said["greedy"][direction][str(LAYER)][0] == HEAD
        assert said["single"][direction][str(LAYER)][0] == HEAD
        everyone = {player_name((layer, head)) for layer in range(N_LAYERS) for head in (*range(N_HEADS), None)}
        assert set(said["orders"][direction]["single"]) == set(said["orders"][direction]["attribution"]) == everyone
    looked = [one for one in said["attention"] if one["head"] == f"L{LAYER}.head {HEAD}"]
    assert len(looked) == 3
    for one in looked:
        assert one["js"] < 1e-9, "an edit of what it writes does not move where it looks"
        assert len(one["base"]) == 5
        assert sum(weight for _, weight in one["tuned"]) <= 1.001


def test_whole_patterns_of_the_top_heads_are_kept_and_end_in_those_of_the_last_token(one_head: Run) -> None:
    said = one_head.manifest()["heads"]
    kept = said["attention_patterns"]
    assert 0 < len(kept["tokens"]) <= 24
    assert f"L{LAYER}.head {HEAD}" in [head["head"] for head in kept["heads"]]
    for head in kept["heads"]:
        of_last = next(one for one in said["attention"] if (one["head"], one["prompt"]) == (head["head"], kept["prompt"]))
        for side in ("base", "tuned"):
            assert [len(row) for row in head[side]] == list(range(1, len(kept["tokens"]) + 1)), "a token sees itself and those before it"
            assert all(0 <= weight <= 1 and sum(row) <= 1.01 for row in head[side] for weight in row)
            largest = [weight for _, weight in of_last[side]]
            known = [weight for weight in head[side][-1] if weight > min(largest) + 1e-3]
            assert known, "some of the tokens of the largest weights are among the last of the prompt"
            assert all(min(abs(weight - other) for other in largest) < 1e-3 for weight in known)
        if head["head"] == f"L{LAYER}.head {HEAD}":
            np.testing.assert_allclose(head["base"][-1], head["tuned"][-1], atol=2e-3)


def test_write_carries_what_routing_does_not_and_mapped_heads_are_close(one_head: Run) -> None:
    here = of(one_head, direction="tuned<-base", split="report", layer=LAYER, unit=f"head {HEAD}", metric="kl_own_nats", control=None)
    arms = {(arm, strength): value for arm, strength, value in here.group_by("arm", "strength").agg(pl.col("value").mean()).iter_rows()}
    assert arms["write", None] == pytest.approx(arms["contribution", None], rel=1e-4)
    assert arms["routing", None] < 1e-10
    assert arms["z_swap", None] < 1e-10
    assert ("z_swap", 0.5) in arms
    assert arms["rrr", None] < 1e-6, "z has not changed here, so the mapped head is the tuned model's own"
    back = of(one_head, direction="base<-base", layer=LAYER, unit="all", arm="rrr", metric="kl_other_nats")
    own = of(
        one_head, direction="base<-tuned", split="report", layer=LAYER, unit="all", arm="contribution", metric="kl_other_nats", control=None
    )
    assert back["value"].mean() == pytest.approx(own["value"].mean(), rel=1e-3)


def test_the_network_is_covered_by_one_head(one_head: Run) -> None:
    sets = of(one_head, direction="tuned<-base", layer=None, split="report", control=None, metric="kl_own_nats")
    means = {(site, unit): value for site, unit, value in sets.group_by("site", "unit").agg(pl.col("value").mean()).iter_rows()}
    alone = of(
        one_head,
        direction="tuned<-base",
        split="report",
        layer=LAYER,
        unit=f"head {HEAD}",
        arm="contribution",
        metric="kl_own_nats",
        control=None,
    )
    assert means["attn_proj", f"L{LAYER}.head {HEAD}"] == pytest.approx(alone["value"].mean(), rel=1e-4)
    assert {("attn_proj", "all"), (None, "all")} <= set(means)
    drawn = of(one_head, direction="tuned<-base", layer=None, control="random_set#0", rank=3, metric="kl_own_nats")
    assert len(drawn) == drawn["prompt"].n_unique() > 0


def test_random_sets_are_all_sets_where_there_are_few(one_head: Run) -> None:
    drawn = of(one_head, layer=LAYER, direction="tuned<-base", rank=2, metric="kl_own_nats").filter(
        pl.col("control").str.starts_with("random_set")
    )
    assert drawn["unit"].n_unique() == 6
    assert set(drawn["unit"]) == {f"heads {i},{j}" for i in range(N_HEADS) for j in range(i + 1, N_HEADS)}


def test_gradients_agree_with_patches_and_are_complete(one_head: Run) -> None:
    said = one_head.manifest()["attribution"]
    assert said["validated"]["tuned<-base"]["by"] == "select"
    assert said["validated"]["base<-tuned"]["top"][0] == f"L{LAYER}.head {HEAD}"
    report = of(one_head, "attribution", split="report", layer=LAYER, direction="base<-tuned", site="attn_proj")
    mean = {(arm, unit): v for arm, unit, v in report.group_by("arm", "unit").agg(pl.col("value").mean()).iter_rows()}
    true = mean["contribution", "all"]
    assert true > 0
    assert mean["contribution", f"head {HEAD}"] == pytest.approx(true, rel=1e-4)
    assert mean["integrated_gradients", f"head {HEAD}"] == pytest.approx(true, rel=0.02)
    assert mean["grad_x_diff", f"head {HEAD}"] == pytest.approx(true, rel=0.5)
    assert sum(v for (arm, _), v in mean.items() if arm == "integrated_gradients") == pytest.approx(true, rel=0.02)
    assert set(of(one_head, "attribution", split="report")["direction"].unique()) == {
        "tuned<-base",
        "base<-tuned",
        "base<-base",
        "tuned<-tuned",
    }


def test_an_identical_pair_has_no_effect(tmp_path: Path, pair: Path) -> None:
    finished = finish(pair, tmp_path / "run", {"heads": HEADS | FEWER | {"attention_prompts": 1}}, "attribution", tuned="base")
    rows = of(finished)
    assert rows.filter(pl.col("metric") == "kl_own_nats")["value"].max() <= 1e-10  # type: ignore[operator]
    assert of(finished, "attribution", direction="tuned<-base")["value"].abs().max() == 0
    assert rows.filter(pl.col("control").str.starts_with("random_vector")).is_empty(), "an edit of size 0 has no random one beside it"


def test_no_head_is_looked_at_where_none_has_an_effect(tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads_choices, "LEAST", 2.0)  # every effect is less than twice the largest
    finished = finish(pair, tmp_path / "run", {"heads": HEADS | FEWER | {"z_swap": []}})
    assert finished.manifest()["heads"]["attention"] == []
    assert of(finished, metric="attention_js_nats").is_empty()


def test_without_select_prompts_what_is_chosen_there_is_left_out_and_said(tmp_path: Path, pair: Path) -> None:
    texts = (pair / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "report.jsonl").write_text("".join(texts[:5]))
    measures = ["divergence", {"heads": HEADS | {"z_swap": []}}, {"attribution": {"metric": "divergent", "validated": 2}}]
    finished = run(
        base=str(pair / "base"), tuned=str(pair / "tuned"), prompts={"report": str(tmp_path / "report.jsonl")}, measures=measures,
        out=tmp_path / "run",
    )  # fmt: skip
    said = finished.manifest()
    assert said["heads"]["chosen"] == "spread"
    assert said["heads"]["orders"] == {"tuned<-base": {}, "base<-tuned": {}}
    skipped = {entry["what"] for entry in said["skipped"]}
    assert "orders of heads, their sets across the network, and attention of the top heads" in skipped
    assert "churn of heads" in skipped
    assert said["attribution"]["validated"]["tuned<-base"] | {"random": []} == {"top": [], "random": [], "by": "chance"}
    assert of(finished, layer=None).filter(pl.col("control").is_null()).is_empty()


def test_other_layers_for_heads_than_for_gradients(tmp_path: Path, pair: Path) -> None:
    """An order by attribution that does not know every head is none."""
    few = HEADS | {"layers": [1, 3], "closer": [3], "attention_prompts": 0, "z_swap": []}
    finished = finish(pair, tmp_path / "run", {"heads": few}, {"attribution": {"layers": [0, 3], "validated": 2}}, page=False)
    said = finished.manifest()["heads"]
    assert {name.partition(".")[0] for name in said["orders"]["tuned<-base"]["single"]} == {"L1", "L3"}
    assert "attribution" not in said["orders"]["tuned<-base"]
    assert of(finished, layer=3, unit="head 0", metric="shapley_nats").height > 0


def test_a_label_metric_needs_labels_and_layers_must_be_there(tmp_path: Path, pair: Path) -> None:
    with pytest.raises(PromptError, match=r"attribution.metric label: the prompt 'p\d+' has no label"):
        finish(pair, tmp_path / "label", {"attribution": {"metric": "label"}})
    with pytest.raises(StudyError, match=r"heads: selected layers \[9\]"):
        finish(pair, tmp_path / "closer", {"heads": {"closer": [9]}})


def test_prompts_that_choose_are_of_all_lengths() -> None:
    items = [Item(id=f"p{i}", sha256="", tokens=i, pairs=i, tail=i) for i in range(40)]
    assert [item.tokens for item in evenly_spaced(4, items)] == [5, 15, 25, 35]
    assert evenly_spaced(16, items[:3]) == tuple(items[:3])
    assert len({item.id for item in evenly_spaced(39, items)}) == 39


def test_gradient_times_activation_is_that_of_whole_passes_and_stands_in_a_table(one_head: Run) -> None:
    rows = of(one_head, "attribution", arm="grad_x_act", split="report")
    assert set(rows["direction"]) == set(WITHIN)
    rerun = Rerun(one_head.path, EXPERIMENTS, "cpu")
    for row in rows.sample(8, seed=1, shuffle=True).iter_rows(named=True):
        assert AGAIN["attribution"](rerun, row) == pytest.approx(row["value"], rel=2e-3, abs=1e-5), row
    (table,) = (
        part
        for part in attribution(load(one_head.path)).parts
        if isinstance(part, dict) and part.get("folded", "").startswith("Gradient × act")
    )
    largest = rows.group_by("direction", "layer", "unit").agg(pl.col("value").mean()).sort(pl.col("value").abs()).row(-1, named=True)
    assert table["rows"][0][0] == f"L{largest['layer']}H{largest['unit'].removeprefix('head ')}"
