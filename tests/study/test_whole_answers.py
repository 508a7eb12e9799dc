"""Whole answers: what the tuned model says is read by both; D, patches and grafts over it are those of plain forward passes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import every_measure
from mechdiff.audit.rerun import Rerun
from mechdiff.errors import StudyError
from mechdiff.measures.catalogue import AGAIN, CHAPTERS, EXPERIMENTS, make_study
from mechdiff.report import parts
from mechdiff.report.sections import all_sections
from mechdiff.report.verdict import verdict
from mechdiff.study.answers import others
from runs import opened, run

TOKENS = 5
MEASURES: list[Any] = [
    {"divergence": {"over_text": False}},
    {"grafting": {"candidates": 2, "picks": 1, "select_prompts": 2, "truncate": False}},
    {"patching": {"sites": ["attn_out", "resid_post"], "arms": ["identity"]}},
    {"factorial": {"positions": ["decision"]}},
    {"transport": {"sites": ["resid_post"], "closer": [1], "maps": ["anchored_ridge"], "strengths": [], "permutations": 2}},
    {"steering": {"sites": ["resid_post"], "closer": [1], "strengths": [0.5], "draws": 1, "side_prompts": 0, "texts": 0}},
    {
        "heads": {
            "hot": 1,
            "select_prompts": 2,
            "draws": 0,
            "picks": 1,
            "top": 2,
            "null_edits": 0,
            "network_draws": 0,
            "attention_prompts": 0,
        }
    },
]


def study(folder: Path, **told: Any) -> Any:
    prompts = {split: str(folder / f"{split}.jsonl") for split in every_measure.SPLITS}
    pair = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
    return make_study({"pair": pair, "prompts": prompts, "measures": MEASURES, "answers": {"tokens": TOKENS, "prompts": 4}, **told})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    every_measure.made(folder)
    return folder


@pytest.fixture(scope="module")
def finished(pair: Path) -> Any:
    run(study(pair), out=pair / "run", page=False)
    return parts.load(pair / "run")


def networks(pair: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {side: AutoModelForCausalLM.from_pretrained(pair / side).eval() for side in ("base", "tuned")}


def naive(pair: Path, config: Any) -> dict[str, tuple[list[int], int, dict[str, torch.Tensor]]]:
    """By prompt: what both read, how many places it has, and both models' log-probabilities at these, by plain greedy passes."""
    nets, found = networks(pair), {}
    with opened(config, pair / "unrun", device="cpu") as (prepared, _):
        rendered = prepared.rendered["report"]
        items = next(cell.items for cell in prepared.plan.cells if cell.stage == "answer")
    for item in items:
        ids, said = list(rendered[item.id].ids_tuned), list[int]()
        for _ in range(TOKENS):
            with torch.no_grad():
                token = int(nets["tuned"](input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
            said.append(token)
            if token == 257:
                break
        whole = torch.tensor([[*ids, *said[:-1]]])
        with torch.no_grad():
            laws = {side: net(input_ids=whole).logits[0, len(ids) - 1 :].double().log_softmax(-1) for side, net in nets.items()}
        found[item.id] = ([*ids, *said[:-1]], len(said), laws)
    return found


def test_d_over_answers_is_that_of_plain_passes(pair: Path, finished: Any) -> None:
    expected = naive(pair, study(pair))
    assert len(expected) == 4
    rows = finished.rows.filter(measure="divergence").filter(pl.col("metric").str.ends_with("_answer_nats"))
    assert set(rows["prompt"]) == set(expected)
    for name, (_, n_places, laws) in expected.items():
        here = dict(rows.filter(prompt=name).select("metric", "value").iter_rows())
        base, tuned = laws["base"], laws["tuned"]
        assert len(base) == n_places
        kl = float((tuned.exp() * (tuned - base)).sum(-1).mean())
        assert kl > 0.01
        assert here["kl_tuned_base_answer_nats"] == pytest.approx(kl, rel=1e-4)
        assert here["kl_base_tuned_answer_nats"] == pytest.approx(float((base.exp() * (base - tuned)).sum(-1).mean()), rel=1e-4)
        tops = [(int(t.argmax()), int(b.argmax())) for t, b in zip(tuned, base, strict=True)]
        ratio = np.mean([float(law[t] - law[b]) for law, (t, b) in zip(base, tops, strict=True)])
        assert here["log_ratio_base_answer_nats"] == pytest.approx(ratio, rel=1e-4, abs=1e-5)
        first = next((place for place, (t, b) in enumerate(tops) if t != b), None)
        said = finished.rows.filter(measure="divergence", metric="divergent_place", prompt=name)["value"][0]
        assert said == first if first is not None else np.isnan(said)


def test_shares_over_answers_are_ratios_of_means_over_the_same_places(finished: Any) -> None:
    d = finished.rows.filter(measure="divergence", metric="kl_tuned_base_answer_nats")["value"].mean()
    told = finished.summary.filter(pl.col("metric").is_in(["kl_own_answer_nats", "kl_other_answer_nats"]), pl.col("control").is_null())
    shares = told.filter(pl.col("share").is_not_null())
    assert len(shares) > 10
    for row in shares.iter_rows(named=True):
        expected = row["mean"] / d if row["metric"].startswith("kl_own") else 1 - row["mean"] / d
        assert row["share"] == pytest.approx(expected, rel=1e-9)
    last = told.filter(measure="patching", layer=2, site="resid_post", metric="kl_own_answer_nats", direction="tuned<-base")
    assert last["share"][0] == pytest.approx(1, abs=1e-5)  # the last block's output at every place is all that is predicted from
    assert last["unit"][0] == f"answer_{TOKENS}"
    everything = told.filter(measure="grafting", arm="all", metric="kl_other_answer_nats")
    assert everything["share"][0] == pytest.approx(1, abs=1e-6)
    unedited = finished.summary.filter(measure="patching", control="no_op", metric="kl_own_answer_nats")
    assert unedited["mean"].max() < 1e-6
    assert finished.summary.filter(measure="patching", metric="kl_own_answer_nats")["floor"].null_count() == 0


def test_the_page_says_where_first_token_and_answer_disagree_or_that_it_cannot_be_told(pair: Path, finished: Any) -> None:
    sections = {one.id: one for one in all_sections(parts.load(pair / "run"), CHAPTERS)}
    said = " ".join(sections["patching"].lead)
    assert f"Over the first {TOKENS} tokens of the answers to 4 prompts D is " in said
    assert "cannot be tested on so few prompts" in said
    titles = [part.get("title") for part in sections["patching"].parts if isinstance(part, dict)]
    assert "The first token against the whole answer, on the same prompts" in titles
    assert "Along the answers (4 prompts) D is " in " ".join(sections["divergence"].lead)
    words = {
        "heads": "does most (",
        "steering": "the mean difference along other prompts' answers",
        "transport": "Fitted on other prompts' answers",
    }
    for name, text in words.items():
        assert text in " ".join(sections[name].lead)
        titles = [part.get("title") for part in sections[name].parts if isinstance(part, dict)]
        assert "The first token against the whole answer, on the same prompts" in titles
    captions = [part.caption for part in sections["factorial"].parts if isinstance(part, parts.Drawn)]
    assert "Exchanged at every position of the answer" in captions[0]


def test_answers_are_left_out_where_none_are_wanted_or_none_can_be(pair: Path) -> None:
    with opened(study(pair, answers={"tokens": 0}), pair / "none", device="cpu") as (prepared, _):
        assert not [cell for cell in prepared.plan.cells if "answer" in cell.key]
    cut = study(pair, prompts={**{split: str(pair / f"{split}.jsonl") for split in every_measure.SPLITS}, "position": "last_user"})
    with opened(cut, pair / "cut", device="cpu") as (prepared, _):
        assert not [cell for cell in prepared.plan.cells if "answer" in cell.key]
        assert [one["why"] for one in prepared.plan.skipped if one["what"] == "answers"] == [
            "the prompts end where the user's own text ends (position last_user), and no answer begins there"
        ]
    with pytest.raises(StudyError, match=r"answers\.of: given 'all', expected"):
        study(pair, answers={"of": "all"})


def test_answers_have_room_in_the_context(pair: Path) -> None:
    with opened(study(pair, answers={"tokens": 490}), pair / "long", device="cpu") as (prepared, _):
        told = [one for one in prepared.plan.skipped if one["what"] == "answers to some prompts"]
        answered = [item for cell in prepared.plan.cells if cell.stage == "answer" for item in cell.items]
        assert told
        assert all(item.longest + 490 <= 512 for item in answered)


def test_what_is_made_of_other_answers_is_left_out_by_name_where_all_say_the_same(pair: Path, tmp_path: Path) -> None:
    """Report prompts of one cluster, and one answered prompt: steering and transport over answers have nothing to be made of."""
    lines = [json.loads(line) for line in (pair / "report.jsonl").read_text().splitlines()]
    same = [{**line, "meta": {**line.get("meta", {}), "cluster": "one"}} for line in lines]
    (tmp_path / "report.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in same))
    prompts = {**{split: str(pair / f"{split}.jsonl") for split in every_measure.SPLITS}, "report": str(tmp_path / "report.jsonl")}
    alike, single = study(pair, prompts=prompts), study(pair, answers={"tokens": TOKENS, "prompts": 1})
    for config, why in ((alike, "all answered prompts say the same (one cluster)"), (single, "there is one answered prompt")):
        with opened(config, tmp_path / why[:3], device="cpu") as (prepared, _):
            said = {one["what"]: one["why"] for one in prepared.plan.skipped}
            stages = {cell.stage for cell in prepared.plan.cells}
        for measure, stage in (("steering", "steered_answers"), ("transport", "mapped_answers")):
            assert said[f"{measure} over answers"] == f"{why}, and what is patched in is made of the answers to others"
            assert stage not in stages


def test_heads_over_answers_may_be_those_of_fewer_layers(pair: Path) -> None:
    few = study(pair, measures=[{"heads": {"answer_layers": 1}}])
    with opened(few, pair / "few", device="cpu") as (prepared, _):
        here = [cell for cell in prepared.plan.cells if cell.stage in ("heads", "heads_over_answers")]
    layers = {cell.stage: tuple(cell.key["layers"]) for cell in here}
    assert layers == {"heads": (0, 1, 2), "heads_over_answers": (1,)}


def test_a_change_behind_the_first_token_is_found(pair: Path) -> None:
    """The embedding of what answers have second: no next token shows it, and the page says so, and what patches of whole answers find."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    net = AutoModelForCausalLM.from_pretrained(pair / "base")
    same = study(pair, pair={"base": str(pair / "base"), "tuned": str(pair / "base")})
    with opened(same, pair / "unrun2", device="cpu") as (prepared, _):
        ids = {name: list(one.ids_base) for name, one in prepared.rendered["report"].items()}
    second = set()
    for one in ids.values():
        with torch.no_grad():
            said = net.generate(torch.tensor([one]), max_new_tokens=2, do_sample=False, pad_token_id=258)[0, len(one) :].tolist()
        second |= set(said[1:])
    read_before = {token for one in ids.values() for token in one}
    late = sorted(second - read_before)
    assert late, "the base's second tokens stand in no prompt"
    folder = pair / "late"
    with torch.no_grad():
        weight = net.get_input_embeddings().weight
        weight[late] += torch.from_numpy(np.random.default_rng(1).standard_normal((len(late), weight.shape[1]))).float()
    net.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pair / "base").save_pretrained(folder)
    firsts = {name: int(net(input_ids=torch.tensor([one])).logits[0, -1].argmax()) for name, one in ids.items()}
    assert not set(firsts.values()) & set(late), "no answer begins with one of them"
    run(study(pair, pair={"base": str(pair / "base"), "tuned": str(folder)}), out=pair / "run_late", page=False)
    found = parts.load(pair / "run_late")
    flags = found.summary.filter(measure="divergence", metric="kl_tuned_base_nats", split="report").filter(pl.col("unit").is_null())
    assert "no_effect" in flags["flag"][0]
    d = found.summary.filter(measure="divergence", metric="kl_tuned_base_answer_nats")
    assert d["mean"][0] > 1e-3
    assert found.rows.filter(measure="divergence", metric="divergent_place")["value"].fill_nan(9).min() >= 2
    sentences = " ".join(verdict(found, CHAPTERS))
    assert sentences.startswith("At the next token there is no effect to explain: D = ")
    assert "; along the answers (4 prompts) D is " in sentences
    sections = {one.id: one for one in all_sections(found, CHAPTERS)}
    assert any(isinstance(part, parts.Drawn) and part.name == "causal_map_answer" for part in sections["patching"].parts)
    graft = found.summary.filter(measure="grafting", arm="alone", site="embed", metric="kl_other_answer_nats")
    assert graft["share"][0] == pytest.approx(1, abs=1e-6)


def over_answers(finished: Any, measure: str) -> pl.DataFrame:
    return finished.rows.filter(pl.col("measure") == measure, pl.col("metric").str.contains("_(answer|divergent)_nats$"))


@pytest.mark.parametrize("measure", ["factorial", "heads", "steering", "transport"])
def test_rows_over_answers_are_those_of_whole_passes(pair: Path, finished: Any, measure: str) -> None:
    """Computed once more by hooks on whole forward passes of prompt and answer, by none of the measure's code."""
    rows = over_answers(finished, measure).filter(
        ~pl.col("control").fill_null("").str.contains("random"), pl.col("arm").ne_missing("anchored_ridge")
    )
    rerun, again = Rerun(pair / "run", EXPERIMENTS, "cpu"), AGAIN[measure]
    some = rows.sample(min(60, len(rows)), seed=1, shuffle=True)
    assert some["metric"].n_unique() > 5
    for row in some.iter_rows(named=True):
        assert again(rerun, row) == pytest.approx(row["value"], rel=2e-3, abs=2e-5, nan_ok=True), row


def test_all_heads_at_every_position_are_the_whole_output(finished: Any) -> None:
    """All heads of a block are the whole of `attn_out`, where nothing stands between a block's heads and its output."""
    metric, key = "kl_own_answer_nats", ["prompt", "layer", "direction"]
    rows = finished.rows.filter(metric=metric).filter(pl.col("control").is_null())
    heads = rows.filter(measure="heads", unit=f"all, answer_{TOKENS}").select(*key, heads="value")
    patches = rows.filter(measure="patching", site="attn_out", unit=f"answer_{TOKENS}").select(*key, "value")
    both = heads.join(patches, on=key)
    assert len(both) == 4 * 3 * 2
    np.testing.assert_allclose(both["heads"], both["value"], rtol=1e-3, atol=1e-6)
    single = rows.filter(measure="heads").filter(pl.col("unit").str.starts_with("head "))
    assert single["value"].min() >= 0
    assert single["unit"].n_unique() > 1


def test_the_halves_of_an_answer_sum_to_d_over_it(finished: Any) -> None:
    """Over an answer too: both effects in nats of KL sum to D, and in the linear score to D and its reverse together."""
    rows = over_answers(finished, "factorial").filter(unit=f"answer_{TOKENS}")
    for what in ("answer", "divergent"):
        effects = rows.filter(pl.col("metric").is_in([f"{half}_effect_{what}_nats" for half in ("upstream", "downstream")]))
        summed = effects.group_by("layer", "prompt").agg(pl.col("value").sum())
        d = finished.rows.filter(measure="divergence", metric=f"kl_tuned_base_{what}_nats").select("prompt", d="value")
        both = summed.join(d, on="prompt").filter(pl.col("d").is_finite())
        assert len(both) == len(summed.filter(pl.col("value").is_finite())) > 0
        np.testing.assert_allclose(both["value"], both["d"], rtol=1e-4)
    linear = rows.filter(pl.col("metric").is_in([f"{half}_effect_linear_answer_nats" for half in ("upstream", "downstream")]))
    summed = linear.group_by("layer", "prompt").agg(pl.col("value").sum())
    ways = finished.rows.filter(measure="divergence").filter(
        pl.col("metric").is_in(["kl_tuned_base_answer_nats", "kl_base_tuned_answer_nats"])
    )
    both = summed.join(ways.group_by("prompt").agg(d=pl.col("value").sum()), on="prompt")
    np.testing.assert_allclose(both["value"], both["d"], rtol=1e-4)
    floors = finished.summary.filter(measure="factorial", unit=f"answer_{TOKENS}", metric="interaction_answer_nats")["floor"]
    assert floors.null_count() == 0
    assert floors.max() < 1e-4


def test_one_vector_over_answers_is_the_constant_shift_of_the_other_answers(finished: Any) -> None:
    """Steering adds what transport writes as the shift; a map that learns stands beside it, and random vectors beside both."""
    key, metric = ["prompt", "layer", "site"], "kl_other_answer_nats"
    rows = finished.rows.filter(metric=metric, direction="base<-base", unit=f"answer_{TOKENS}")
    added = rows.filter(measure="steering", arm="add").filter(pl.col("strength").is_null(), pl.col("control").is_null())
    shifted = rows.filter(measure="transport", arm="shift")
    both = added.select(*key, "value").join(shifted.select(*key, shift="value"), on=key)
    assert len(both) == 4
    np.testing.assert_allclose(both["value"], both["shift"], rtol=1e-4)
    assert set(rows.filter(measure="transport")["arm"]) == {"shift", "mean", "anchored_ridge"}
    assert len(rows.filter(measure="steering", control="random_vector#0")) == 4
    half = rows.filter(measure="steering", strength=0.5)
    assert not np.allclose(half["value"], added["value"])


def test_what_is_fitted_on_answers_has_not_seen_the_prompt() -> None:
    clusters = {"a": "x", "b": "y", "c": "x", "d": "z", "e": "u", "f": "v", "g": "w"}
    for name, cluster in clusters.items():
        seen = others(clusters, name)
        assert seen
        assert cluster not in {clusters[one] for one in seen}
    assert others({"a": "x", "b": "x"}, "a") == []
    assert others({"a": "x", "b": "y"}, "a") == ["b"]
