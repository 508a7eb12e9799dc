"""Routing reads what transformers itself says of its routers, and tells the routers' own change from that of their inputs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy.spatial.distance import jensenshannon

import decoders
import mixture as pair_of
import pico
from mechdiff import labels
from mechdiff.architectures.lookup import routers_of
from mechdiff.architectures.network import network_of
from mechdiff.architectures.proposal import propose
from mechdiff.audit.distributions import NotRecomputed
from mechdiff.audit.rerun import Rerun
from mechdiff.engine.routers import Choice, ask, gate_of, routed
from mechdiff.measures.catalogue import EXPERIMENTS, NUMBERS, make_study
from mechdiff.measures.routing import compute, findings, formula, verify, words
from mechdiff.measures.routing.page import routing
from mechdiff.measures.routing.plan import INPUTS_ALONE, JS, REPLACED, SET, TOP, WEIGHTS_ALONE
from mechdiff.models.pair import wrap
from mechdiff.report import parts
from mechdiff.report.parts import Drawn, Run
from mechdiff.report.phrasing import with_interval
from mechdiff.rows import empty, rows, where
from mechdiff.statistics.intervals import wilson
from mechdiff.statistics.summary import summarise
from mechdiff.store.tables import read_manifest, read_rows, read_summary
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
from mechdiff.validate.made import token_prompts

IDS = token_prompts(1, shortest=20)[0]
MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "gpt_oss", "deepseek_v3", "qwen3_next")
SIGMOID = ("deepseek_v3",)
EVERYWHERE, DECISION = labels.experts_unit("all"), labels.experts_unit("decision")


# ---- reading -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_scores_and_choices_are_those_that_transformers_gives_out(name: str) -> None:
    model = pico.pico(name)
    found = routed(model, IDS, routers_of(model.config))
    with torch.inference_mode():
        given = model.net(input_ids=torch.tensor([IDS]), output_router_logits=True, use_cache=False).router_logits
    assert list(found) == list(range(len(given)))
    for (_, choice), logits in zip(found.values(), given, strict=True):
        assert choice
        assert torch.equal(choice.scores, logits.double())
        best = logits.topk(model.config.num_experts_per_tok).indices
        assert [set(row.nonzero()[:, 0].tolist()) for row in choice.chosen] == [set(row) for row in best.tolist()]
        assert choice.top.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("name", MIXTURES)
def test_a_router_asked_again_gives_the_same_and_its_gate_is_known(name: str) -> None:
    model = pico.pico(name)
    paths = routers_of(model.config)
    assert paths == {
        layer: block.router for layer, block in enumerate(propose(network_of(model.config), model.config).by_layer) if block.router
    }
    for layer, (asked, choice) in routed(model, IDS, paths).items():
        again = ask(model, layer, paths[layer], asked)
        assert choice
        assert again
        assert torch.equal(again.scores, choice.scores)
        assert torch.equal(again.weights, choice.weights)
        assert gate_of(choice) == ("sigmoid" if name in SIGMOID else "softmax")


def test_a_correction_bias_beside_the_router_is_the_other_models_own() -> None:
    """LFM2's router is given its bias by the block: asked again in another model it gets that model's, which turns the choice and no weight."""
    config = decoders.tiny_config("lfm2_moe")
    base, tuned = (wrap(decoders.tiny_decoder("lfm2_moe"), side=side, ref=side, config=config) for side in ("base", "tuned"))
    paths = routers_of(config)
    layer = min(paths)
    biases = [one for name, one in tuned.blocks[layer].named_buffers() if one.shape == (config.num_experts,)]
    biases += [one for name, one in tuned.blocks[layer].named_parameters() if one.shape == (config.num_experts,)]
    assert len(biases) == 1
    biases[0].data.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    asked, _ = routed(base, IDS, paths)[layer]
    choice = ask(tuned, layer, paths[layer], asked)
    assert choice
    assert (choice.chosen == torch.tensor([True, True, False, False])).all()
    assert gate_of(choice) == "sigmoid"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_dense_model_has_no_routers(name: str) -> None:
    config = pico.CONFIGS[name]()
    assert routers_of(config) == {}
    assert not [block for block in propose(network_of(config), config).by_layer if block.router]


@pytest.mark.parametrize("kind", ["llama4_text", "glm_moe_dsa"])
def test_routers_that_are_otherwise_give_a_choice(kind: str) -> None:
    """Llama 4 gives no list of the chosen; GLM's blocks also have indexers, which are no routers."""
    assert decoders.routes(kind) == "yes"


@pytest.mark.slow
@pytest.mark.parametrize("kind", decoders.decoders())
def test_every_decoder_gives_choices_or_has_no_router(kind: str) -> None:
    said = decoders.routes(kind)
    assert said in ("yes", "no router") or "Error" in said


# ---- formulas ------------------------------------------------------------------------------------------------------------------------


def choice(scores: Any, k: int, *, sigmoid: bool = False, rounding: float = 1e-7) -> Choice:
    """A router by the book: the k largest scores, each with its share of the gate."""
    table = torch.as_tensor(scores, dtype=torch.float64)
    law = table.sigmoid() if sigmoid else table.softmax(-1)
    chosen = torch.zeros_like(table, dtype=torch.bool).scatter(1, table.topk(k).indices, True)
    weights = torch.where(chosen, law, 0.0)
    return Choice(scores=table, weights=weights / weights.sum(-1, keepdim=True), chosen=chosen, rounding=rounding)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_every_metric_is_its_definition(gate: Any) -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 50, 6))
    base, tuned = (choice(table, 3, sigmoid=gate == "sigmoid") for table in (first, second))
    assert gate_of(base) == gate
    found = formula.moved(base, tuned, gate)
    law = (lambda s: 1 / (1 + np.exp(-s))) if gate == "sigmoid" else np.exp
    for at in range(50):
        ours, theirs = (set(np.argsort(-table[at])[:3].tolist()) for table in (first, second))
        p, q = (law(table[at]) / law(table[at]).sum() for table in (first, second))
        assert found[TOP][at] == float(first[at].argmax() != second[at].argmax())
        assert found[SET][at] == float(ours != theirs)
        assert found[REPLACED][at] == pytest.approx(len(ours - theirs) / 3, abs=1e-12)
        assert found[JS][at] == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)


def test_of_equal_weights_the_first_expert_is_the_top_one_whatever_the_order_of_the_choice() -> None:
    assert choice([[1.0, 2.0, 2.0, 0.0]], 2).top.tolist() == [1]


@pytest.mark.parametrize("weights", [torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.9, 0.1, 0.0]])])
def test_weights_in_no_known_proportion_have_no_gate(weights: torch.Tensor) -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    one = Choice(scores=scores, weights=weights.double(), chosen=weights > 0, rounding=1e-7)
    assert gate_of(one) is None
    assert JS not in formula.moved(one, one, gate_of(one))


def test_one_expert_of_weight_one_does_not_say_its_gate_and_its_probability_does() -> None:
    scores = torch.randn(9, 4, dtype=torch.float64)
    chosen = torch.zeros(9, 4, dtype=torch.bool).scatter(1, scores.argmax(-1, keepdim=True), True)
    gates = [
        gate_of(Choice(scores=scores, weights=torch.where(chosen, law, 0.0), chosen=chosen, rounding=1e-7))
        for law in (torch.ones_like(scores), scores.softmax(-1), scores.sigmoid())
    ]
    assert gates == [None, "softmax", "sigmoid"]


# ---- a planted pair ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [EVERYWHERE, DECISION])
def test_routers_that_are_the_same_move_nothing_and_inputs_that_are_the_same_neither(mixture: Path, unit: str) -> None:
    found = read_rows(mixture / "run")

    def values(layer: int, control: str | None) -> np.ndarray:
        return where(found, split="report", layer=layer, control=control, unit=unit).sort("metric", "prompt")["value"].to_numpy()

    for layer in range(4):
        assert len(values(layer, None)) == 4 * 8
        assert not values(layer, "no_op").any()
        if layer < 1:
            assert not values(layer, None).any()
        if layer != pair_of.ROUTER:
            assert not values(layer, WEIGHTS_ALONE).any()
            assert (values(layer, INPUTS_ALONE) == values(layer, None)).all()
    assert values(1, None).any()
    assert values(pair_of.ROUTER, WEIGHTS_ALONE).any()
    assert values(pair_of.ROUTER, INPUTS_ALONE).any()


def test_an_exchange_of_two_rows_moves_the_tokens_of_these_experts_alone(mixture: Path) -> None:
    """Expected from the base's own choice; the decision position counts too, as one token."""
    found = read_rows(mixture / "run")
    run = Rerun(mixture / "run", EXPERIMENTS, "cpu")
    for name in run.names("report"):
        with run.model("base") as model:
            own = routed(model, run.ids("base", "report", name), {pair_of.ROUTER: "mlp.gate"})[pair_of.ROUTER][1]
        assert own
        moves = (own.top < 2).double()
        for unit, share in ((EVERYWHERE, moves.mean()), (DECISION, moves[-1])):
            at = {"layer": pair_of.ROUTER, "control": WEIGHTS_ALONE, "unit": unit, "metric": TOP, "prompt": name}
            assert where(found, **at)["value"].to_list() == [float(share)]


def test_every_kind_of_row_comes_out_a_second_way(mixture: Path) -> None:
    run = Rerun(mixture / "run", EXPERIMENTS, "cpu")
    one = read_rows(mixture / "run").filter(pl.col("layer") >= 1, pl.col("split") == "report")
    one = one.unique(["layer", "control", "unit", "metric"], keep="first", maintain_order=True)
    assert len(one) == 3 * 4 * 2 * 4
    for row in one.iter_rows(named=True):
        assert verify.again(run, row) == pytest.approx(row["value"], abs=1e-9), row


def test_the_second_way_does_not_guess_a_gate_of_one_expert() -> None:
    with pytest.raises(NotRecomputed, match="one expert"):
        verify._law({"scores": np.zeros(4), "weights": {2: 1.0}})


def test_the_record_says_how_many_experts_there_are_and_which_gate(mixture: Path) -> None:
    assert read_manifest(mixture / "run")["routers"] == {str(layer): {"experts": 4, "chosen": 2, "gate": "softmax"} for layer in range(4)}


def test_one_token_has_wilsons_interval_and_a_share_of_tokens_has_not(mixture: Path) -> None:
    found = where(read_summary(mixture / "run"), measure="routing", split="report", control=None, layer=3, metric=TOP)
    one, share = (found.filter(pl.col("unit") == unit).row(0, named=True) for unit in (DECISION, EVERYWHERE))
    assert (one["ci_low"], one["ci_high"]) == pytest.approx(wilson(one["mean"], 8))
    assert (share["ci_low"], share["ci_high"]) != pytest.approx(wilson(share["mean"], 8))


# ---- the page ------------------------------------------------------------------------------------------------------------------------


def test_the_page_names_the_layer_that_other_prompts_chose_and_what_moves_its_tokens(mixture: Path) -> None:
    run = parts.load(mixture / "run")
    found = findings.most_moved(run.rows)
    assert found
    select = where(run.rows, split="select", unit=EVERYWHERE, metric=TOP, control=None).group_by("layer").agg(pl.col("value").mean())
    report = where(run.rows, split="report", unit=EVERYWHERE, metric=TOP, control=None, layer=found.layer)["value"]
    assert found.layer == select.sort("value")["layer"][-1]
    assert (found.share, found.n, found.chosen_on) == (pytest.approx(report.to_numpy().mean()), 8, "select")
    assert found.low <= found.share <= found.high
    (said,) = words.lead(run)
    size = with_interval(found.share, found.low, found.high, digits=2, coverage=1.0)
    assert said.startswith(f"At layer {found.layer} (selected on the validation prompts, 8 others) a share of {size} ")
    assert "the base's router on the tuned model's inputs moves" in said
    section = routing(run)
    (figure,) = [part for part in section.parts if isinstance(part, Drawn)]
    assert figure.chart(run.rows, run.summary, run.manifest, width=700) is not None
    assert "2 of 4 experts" in figure.caption
    assert "softmax" in figure.caption


def made_run(values: np.ndarray) -> Run:
    """A run of the values [prompt, layer] of the share of tokens, on the report prompts."""
    frames = [
        rows(
            values[:, layer],
            measure="routing",
            split="report",
            layer=layer,
            unit=EVERYWHERE,
            metric=TOP,
            prompt=[f"p{i}" for i in range(len(values))],
        )
        for layer in range(values.shape[1])
    ]
    return Run(rows=pl.concat(frames), summary=pl.DataFrame(), manifest={})


def test_without_select_prompts_the_interval_is_a_band_over_all_layers() -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.4, size=(12, 6))
    found = findings.most_moved(made_run(values).rows)
    alone = findings.most_moved(made_run(values[:, [int(values.mean(0).argmax())]]).rows)
    assert found
    assert alone
    assert found.chosen_on is None
    assert found.candidates == 6
    assert found.high - found.low > alone.high - alone.low
    (said,) = words.lead(made_run(values))
    assert "optimistically biased; the interval is a band over all of them" in said


@pytest.mark.parametrize(
    "values", [np.full((3, 2), 0.5), np.zeros((9, 2)), np.eye(9)[:, :2]], ids=["three prompts", "no token moves", "one prompt in nine"]
)
def test_nothing_is_said_that_the_prompts_do_not_carry(values: np.ndarray) -> None:
    assert words.lead(made_run(values)) == []
    assert not [one for one in words.clause(made_run(values)) if one.tested]


# ---- what cannot be read -------------------------------------------------------------------------------------------------------------


def test_dense_models_are_skipped_with_a_sentence_and_no_zero(pair: Path) -> None:
    where_they_are = {"pair": {"base": "./base", "tuned": "./tuned"}, "prompts": {"file": "prompts.jsonl"}}
    asked = make_study({**where_they_are, "measures": ["routing"]}, folder=pair)
    plan = prepare(asked, RunOptions(device="cpu"), EXPERIMENTS).plan
    assert [one for one in plan.skipped if one["what"] == "routing"] == [{"what": "routing", "why": "these models have no experts"}]
    assert not [cell for cell in plan.cells if cell.stage == "routing"]
    (said,) = routing(Run(rows=empty(), summary=summarise(empty(), NUMBERS), manifest={"skipped": list(plan.skipped)})).parts
    assert said["text"] == "Routing was not measured: these models have no experts."


def test_the_record_names_the_blocks_that_were_left_out_once_a_reason() -> None:
    facts = [[compute.UNREAD, -1, 0, 0], [0, -1, 4, 2], [0, 1, 4, 2], [0, -1, 4, 2]]
    loaded = SimpleNamespace(tensors={"layers": np.arange(4), "facts": np.array(facts)})
    run: Any = SimpleNamespace(cells=[SimpleNamespace(stage="routing", key={})] * 2, folder=SimpleNamespace(load=lambda key: loaded))
    found = compute.routers_record(run)
    assert [one["what"] for one in found["skipped"]] == ["routing at block 0", "routing: JS of the gates at blocks 1, 3"]
    assert {layer: one["gate"] for layer, one in found["routers"].items()} == {"1": None, "2": "sigmoid", "3": None}


def test_two_models_of_other_numbers_of_experts_are_no_row_and_a_reason() -> None:
    base, tuned = choice(np.zeros((2, 4)), 2), choice(np.zeros((2, 8)), 2)
    assert compute._why(base, base) == 0
    assert "different numbers of experts" in compute.WHY[compute._why(base, tuned)]
    assert "no score of each expert" in compute.WHY[compute._why(base, None)]
    assert compute._gate(base, None) is None
