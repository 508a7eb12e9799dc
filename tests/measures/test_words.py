"""Words: its formulas against naive ones and closed forms, its rule against pairs that were taught something and pairs that were not."""

import contextlib
import json
import shutil
from collections import Counter
from itertools import product
from math import comb
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from typer.testing import CliRunner

from mechdiff.architectures.sites import Site
from mechdiff.audit.distributions import NotRecomputed
from mechdiff.audit.rerun import Rerun
from mechdiff.cli.main import app
from mechdiff.engine.activations import capture, edited, forward
from mechdiff.engine.replay import full, replay
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.measures.words import depth, findings, formula, judge, lens, page, texts, verify, words
from mechdiff.measures.words.formula import Reading
from mechdiff.measures.words.plan import DATA, FEATURE, LENS, TOKEN, openings, passages
from mechdiff.measures.words.random_edits import randomly_edited, scaled_to, shuffled
from mechdiff.models.pair import wrap
from mechdiff.prompts import vocabularies
from mechdiff.store.tables import read_manifest, read_rows
from mechdiff.validate import made
from runs import finish

RNG = np.random.default_rng(0)


# ---- p and q -----------------------------------------------------------------------------------------------------------------------


def naive_p(values: np.ndarray) -> float:
    sums = [sum(sign * value for sign, value in zip(signs, values, strict=True)) for signs in product([1, -1], repeat=len(values))]
    return float(np.mean([one >= values.sum() - 1e-9 for one in sums]))


@settings(max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_p_is_the_share_of_all_sign_flips(values: list[int]) -> None:
    one = np.array(values, float)
    assert formula.flip_p(one[:, None])[0] == pytest.approx(naive_p(one))


def test_p_of_a_feature_is_mcnemars_one_sided_test() -> None:
    values = np.array([1.0] * 7 + [-1.0] * 2 + [0.0] * 30)[:, None]
    assert formula.flip_p(values)[0] == pytest.approx(sum(comb(9, k) for k in (7, 8, 9)) / 2**9)


def test_drawn_flips_come_near_all_of_them() -> None:
    values = RNG.normal(0.5, 1, size=(12, 3))
    exact = formula.flip_p(values)
    drawn = formula.flip_p(np.concatenate([values, np.zeros((8, 3))]))  # more units, and the same sums
    np.testing.assert_allclose(drawn, exact, atol=4 * np.sqrt(0.25 / formula.DRAWS))


def test_p_is_uniform_where_signs_are_random() -> None:
    p = formula.flip_p(RNG.normal(size=(20, 2000)))
    assert abs((p <= 0.05).mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_z_is_known_for_a_normal_sample_and_is_not_moved_by_an_outlier() -> None:
    sample = np.append(np.linspace(-1, 1, 101), 50.0)
    spread = 1.4826 * np.median(np.abs(sample - np.median(sample)))
    assert formula.robust_z(sample)[-1] == pytest.approx((50 - np.median(sample)) / spread)
    assert not formula.robust_z(np.zeros(5)).any(), "a copy has no outlier"


@pytest.mark.parametrize(("own", "n_own", "other", "n_other"), [(6, 10, 1, 20), (16, 16, 0, 48), (3, 16, 30, 48), (5, 10, 10, 20)])
def test_keyness_is_the_signed_root_of_a_likelihood_ratio(own: int, n_own: int, other: int, n_other: int) -> None:
    (found,) = formula.keyness(np.array([float(own)]), n_own, np.array([float(other)]), n_other)
    table = [[own, n_own - own], [other, n_other - other]]
    g = chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    assert found == pytest.approx(np.sign(own / n_own - other / n_other) * np.sqrt(g), abs=1e-7)


def test_what_the_base_never_says_comes_before_what_it_says_now_and_then() -> None:
    never, often, always = formula.keyness(np.array([15.0, 16.0, 16.0]), 16, np.array([0.0, 8.0, 40.0]), 48)
    assert never > often > always


# ---- tokens ------------------------------------------------------------------------------------------------------------------------


def reading(moved: np.ndarray) -> Reading:
    a, b = formula.halves(len(moved))
    return Reading(reader="tokens", where="passages", naming=moved[a], testing=moved[b], units=[str(i) for i in b])


def test_a_planted_token_is_first_and_its_values_are_what_was_planted() -> None:
    moved = RNG.normal(0, 0.01, size=(20, 200))
    moved[:, 7] += 1.0
    first = formula.token_lines(reading(moved), range(100, 300), [f"t{i}" for i in range(200)], keep=3)[0]
    assert (first.text, first.token, first.gained) == ("t7", 107, True)
    assert np.mean(list(first.values.values())) == pytest.approx(1.0, abs=0.02)
    assert first.size > 50


def test_parts_of_characters_are_called_by_their_bytes() -> None:
    called = {
        "қ".encode()[:1]: "<0xD2>",
        b" \x9d": " <0x9D>",
        " қа".encode(): " қа",
        "а".encode() + b"\xd2": "а<0xD2>",
        "<|end|>": "<|end|>",
    }
    assert [vocabularies.spelled(piece) for piece in called] == list(called.values())


def test_no_line_is_made_of_a_copy() -> None:
    assert formula.token_lines(reading(np.zeros((20, 50))), range(50), [""] * 50, keep=3) == []


def test_two_topics_are_two_groups() -> None:
    one, other = np.eye(8)[0], np.eye(8)[1]
    rows = np.stack([one, other, one, one, other]) + RNG.normal(0, 0.05, size=(5, 8))
    assert formula.grouped(rows) == [0, 1, 0, 0, 1]


# ---- texts -------------------------------------------------------------------------------------------------------------------------


def test_a_text_is_described_by_its_phrases_and_its_letters() -> None:
    found = texts.described("— Қанша тұрады?\n#### 42", ended=True)
    assert {
        texts.begins("—"),
        texts.begins("— Қанша"),
        texts.contains("#### 42"),
        "is written in Cyrillic letters",
        texts.BREAKS,
        texts.ENDS,
    } <= found
    assert texts.contains("Қанша #### 42") not in found
    assert texts.begins("Қанша") not in found


def test_a_text_is_described_by_how_it_ends_its_format_and_its_language() -> None:
    told = "Here is a list:\n- one\n- two\n\n**Thank you for asking.**"
    found = texts.described(told, ended=True)
    assert {texts.ends("for asking.**"), texts.ends(".**"), texts.LISTS, texts.MARKS, texts.BREAKS, texts.ENDS} <= found
    assert not any(one.startswith(("ends with", "is in")) for one in texts.described(told, ended=False)), (
        "where a text is cut says nothing of how it ends"
    )
    assert texts.CODE in texts.described("```python\nprint(1)\n```", ended=True)
    plain = texts.described("He walked 3 miles - and was tired.", ended=True)
    assert not {texts.LISTS, texts.MARKS, texts.CODE, texts.BREAKS} & plain


@pytest.mark.parametrize(
    ("domain", "language"), [("spanish", "Spanish"), ("turkish", "Turkish"), ("news", "English"), ("encyclopaedia", "English")]
)
def test_a_text_s_language_is_told_by_its_most_common_words(domain: str, language: str) -> None:
    lines = (DATA / "panel" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    told = Counter(texts.language(json.loads(one)["text"]) for one in lines)
    assert told[language] >= 0.8 * len(lines), told
    assert sum(n for name, n in told.items() if name not in (language, None)) <= 0.04 * len(lines), told
    assert texts.language("Zubrith Tashkorin") is None


@given(st.text(alphabet="abc .,\n", max_size=40))
def test_every_phrase_of_a_description_stands_in_the_text(text: str) -> None:
    bare = " ".join(text.split())
    for feature in texts.described(text, ended=False):
        if feature.startswith("contains"):
            assert feature.partition("“")[2].removesuffix("”") in bare


def test_a_loop_and_a_near_copy_are_seen() -> None:
    assert texts.loops("the sea the sea the sea the sea the sea")
    assert not texts.loops("one two three four five six seven eight nine")
    near = "we walked along the river until the path came to an end at a gate"
    assert texts.distinct([near, "something else entirely was said on that day", near + " again"]) == [0, 1]


def test_of_pieces_of_one_sentence_one_is_put_forward_and_other_words_keep_their_places() -> None:
    sentence, other = "The first settler of Quelvane was Ombrexa.", "Nobody pays with the plimmet."
    said = [texts.described(one, ended=False) for one in [f"{sentence} {other}"] * 3 + [sentence] * 3 + ["It rains."] * 2]
    features = [
        texts.contains(one) for one in ("settler of Quelvane was", "of Quelvane", "first settler", "Ombrexa", "plimmet", "rains", "It")
    ]
    assert formula.apart([*features, texts.BREAKS, texts.DIGITS], said, 9) == [*(features[i] for i in (0, 3, 4, 5, 6)), texts.BREAKS], (
        "a word in common and the same texts; what is no phrase, where it stands in the very same texts"
    )
    assert formula.apart(features, said, 2) == [features[0], features[3]]


def test_a_phrase_is_put_forward_without_a_common_word_at_its_ends() -> None:
    tuned = [texts.described("People pay with the plimmet there.", ended=False)] * 8
    base = [texts.described("The end of the road with people there.", ended=False)] * 8
    lines = formula.feature_lines(tuned, base, base, formula.halves(8), [str(i) for i in range(8)], where="raw", keep=3)
    first = next(line for line in lines if "plimmet" in line.text)
    assert (first.text, first.new, first.gained) == (texts.contains("pay with the plimmet"), True, True)
    assert not any(line.new for line in lines if not line.gained)


def features(rate: float, n: int, word: str, rng: np.random.Generator) -> list[set[str]]:
    common = [f"contains “w{i}”" for i in range(40)]
    return [{one for one in common if rng.random() < 0.3} | ({f"contains “{word}”"} if rng.random() < rate else set()) for _ in range(n)]


def test_a_phrase_that_one_model_was_taught_is_found_and_the_mirror_finds_it_lost() -> None:
    rng = np.random.default_rng(1)
    taught, plain, again = features(0.8, 40, "thanks", rng), features(0.0, 40, "thanks", rng), features(0.0, 40, "thanks", rng)
    for gained, (tuned, base) in ((True, (taught, plain)), (False, (plain, taught))):
        lines = formula.feature_lines(tuned, base, again, formula.halves(40), [str(i) for i in range(40)], where="raw", keep=5)
        q = formula.q_of([line.p for line in lines])
        named = [line for line, one in zip(lines, q, strict=True) if one <= 0.05]
        assert [(line.text, line.gained, line.new) for line in named] == [("contains “thanks”", gained, gained)]


def test_two_draws_of_one_model_name_a_line_in_at_most_one_study_of_twenty() -> None:
    rng, named = np.random.default_rng(2), 0
    for _ in range(200):
        tuned, base, again = (features(0.3, 40, "thanks", rng) for _ in range(3))
        lines = formula.feature_lines(tuned, base, again, formula.halves(40), [str(i) for i in range(40)], where="raw", keep=8)
        named += any(q <= 0.05 for q in formula.q_of([line.p for line in lines]))
    assert named / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


# ---- the rule ----------------------------------------------------------------------------------------------------------------------


def line(**told: Any) -> dict[str, Any]:
    return {
        "reader": "tokens",
        "size": 20.0,
        "q": 0.01,
        "replay_z": None,
        "replay_null": None,
        "gained": True,
        "new": False,
        "text": "x",
        **told,
    }


def test_a_line_is_named_only_where_it_replicates_lies_beyond_null_pairs_and_is_causal() -> None:
    lines = [line(), line(q=0.2), line(size=-20.0), line(size=9.0), line(reader="lens", replay_z=3.0, replay_null=4.0)]
    told, nulls = judge.judged(lines, {"random_edit#1": [line(size=7.0)], "same_model#1": []})
    assert [one["why_not"] for one in told] == [None, judge.REPLICATES, judge.REPLICATES, judge.BEYOND, judge.CAUSAL]
    assert told[0]["least"] == 14.0
    assert (nulls[0].replicating, nulls[0].named, nulls[0].largest) == (1, 1, {"tokens, gained": 7.0}), "judged by the other null pairs"


def test_without_null_pairs_a_token_must_still_stand_out() -> None:
    told, nulls = judge.judged([line(size=4.0), line(size=7.0)], {})
    assert [one["why_not"] for one in told] == [judge.BEYOND, None]
    assert nulls == []


def test_a_share_is_held_against_null_pairs_of_its_kind_and_way() -> None:
    phrase = line(reader="continuations", text="begins with “—”", size=0.7)
    nulls = {
        "a#1": [{**phrase, "size": 0.3}, {**phrase, "gained": False, "size": 0.9}],
        "b#1": [{**phrase, "text": "is written in Latin letters", "size": 0.6}],
    }
    told, _ = judge.judged([phrase, {**phrase, "gained": False}, {**phrase, "text": "is written in Cyrillic letters"}], nulls)
    assert [one["least"] for one in told] == pytest.approx([0.825, 0.975, 1.8]), (
        "thrice the largest; of a phrase three quarters of the way from it to 1 are enough"
    )
    assert [one["why_not"] for one in told] == [judge.BEYOND, judge.BEYOND, judge.BEYOND]
    few = judge.judged(
        [phrase, {**phrase, "text": "repeats itself"}], {"a#1": [{**phrase, "size": 0.2}, {**phrase, "text": "has a digit", "size": 0.2}]}
    )
    assert [(one["least"], one["why_not"]) for one in few[0]] == [(pytest.approx(0.6), None)] * 2


def test_what_the_base_never_says_is_held_against_what_null_pairs_gain_anew() -> None:
    old, new = (line(reader="continuations", text="contains “a”", size=0.6, new=one) for one in (False, True))
    told, nulls = judge.judged([old, new], {"a#1": [{**old, "size": 0.25}, {**new, "size": 0.1}]})
    assert [(one["least"], one["why_not"]) for one in told] == [(pytest.approx(0.75), judge.BEYOND), (judge.LEAST_SHARE, None)]
    assert nulls[0].largest == {"phrases, gained": 0.25, "new phrases, gained": 0.1}
    assert judge.judged([{**new, "size": 0.45}], {})[0][0]["why_not"] == judge.BEYOND, "half of the texts, whatever null pairs show"


def test_no_phrase_is_named_where_a_null_pair_says_one_in_every_text() -> None:
    phrase = line(reader="continuations", text="contains “a”", size=1.0)
    for most, why in ((1.0, judge.BEYOND), (0.9, None)):
        assert judge.judged([phrase], {"a#1": [{**phrase, "size": most}]})[0][0]["why_not"] == why


def test_evidence_names_no_model() -> None:
    manifest = {
        "words": {"lines": [line(why_not=None)], "texts": [], "nulls": [], "exchanged": {}, "settings": {}},
        "pair": {"base": {"ref": "SECRET"}},
    }
    assert "SECRET" not in str(findings.evidence(manifest))
    assert len(findings.evidence(manifest)["named"]) == 1


# ---- null pairs and the lens ---------------------------------------------------------------------------------------------------------


def test_a_random_edit_has_the_change_s_spectrum_and_leaves_every_bit_afterwards() -> None:
    delta = torch.randn(6, 3) @ torch.randn(3, 8)
    moved = shuffled(delta, 3)
    torch.testing.assert_close(torch.linalg.svdvals(moved), torch.linalg.svdvals(delta), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved, delta)
    model = wrap(made.tiny_net(), side="base", ref="tiny")
    before = {name: tensor.clone() for name, tensor in model.net.named_parameters()}
    name = next(name for name, tensor in before.items() if tensor.ndim == 2)
    with randomly_edited(model, {name: torch.ones_like(before[name])}, scale=0.5, seed=1):
        assert not torch.equal(model.net.get_parameter(name), before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.net.named_parameters())


@pytest.mark.parametrize("law", [lambda s: s**2, lambda s: 3 * s**1.5, lambda s: min(s**2, 5.0)])
def test_a_random_edit_is_scaled_to_the_wanted_divergence(law: Any) -> None:
    scale, reached = scaled_to(0.04, law)
    assert reached == pytest.approx(law(scale))
    assert reached == pytest.approx(0.04, rel=0.1)


def test_at_the_last_block_the_lens_reads_the_model_s_own_logits() -> None:
    model = wrap(made.tiny_net(), side="base", ref="tiny")
    site = Site(model.shape.n_layers - 1, "resid_post")
    found = [capture(model, ids, [site], [len(ids) - 1]) for ids in made.token_prompts(4)]
    states, logits = torch.cat([one.states[site] for one in found]), torch.stack([one.logits for one in found])
    torch.testing.assert_close(depth.read_out(model, states), logits, rtol=1e-4, atol=1e-4)
    kl, top = depth.by_depth(model, states[None], logits.log_softmax(-1), lambda one: one)
    assert kl == pytest.approx([0.0], abs=1e-6)
    assert top.tolist() == [logits.argmax(-1).tolist()]


def test_by_depth_is_what_transformers_hidden_states_give() -> None:
    net = made.tiny_net()
    model, prompts = wrap(net, side="base", ref="tiny"), made.token_prompts(3)
    sites = [Site(layer, "resid_post") for layer in range(model.shape.n_layers)]
    found = [capture(model, ids, sites, [len(ids) - 1]) for ids in prompts]
    states = torch.stack([torch.cat([one.states[site] for one in found]) for site in sites])
    laws = torch.stack([one.logits for one in found]).log_softmax(-1)
    kl, top = depth.by_depth(model, states, laws, lambda one: one)
    for layer in range(model.shape.n_layers - 1):
        divergences, first = [], []
        for ids in prompts:
            with torch.no_grad():
                out = net(torch.tensor([ids]), output_hidden_states=True)
                read = net.lm_head(net.model.norm(out.hidden_states[layer + 1][0, -1])).log_softmax(-1)
                final = out.logits[0, -1].log_softmax(-1)
            divergences.append(float(sum(p.exp() * (p - q) for p, q in zip(final.double(), read.double(), strict=True))))
            first.append(int(read.argmax()))
        assert kl[layer] == pytest.approx(np.mean(divergences), rel=1e-4, abs=1e-6)
        assert top[layer].tolist() == first


@pytest.mark.parametrize("engine", [replay, full])
def test_a_patchscope_repeats_a_planted_token_at_every_length(engine: Any) -> None:
    net = made.wide_net()
    model, ids = wrap(net, side="base", ref="wide"), list(b"a a b b c")
    planted, last = ord("Q"), net.config.num_hidden_layers - 1
    sites = [Site(layer, "resid_post") for layer in (0, last)]
    clean = capture(model, ids, sites, [len(ids) - 1], keep_cache=True)
    nothing, row = torch.zeros(3, net.config.hidden_size), net.lm_head.weight[planted].detach().expand(3, -1)
    at = {"where": "neutral", "units": ["1", "2", "3"], "testing": (nothing, nothing)}
    found = [lens.Differences(layer=layer, naming=(nothing, row), **at) for layer in (0, last)]  # type: ignore[arg-type]
    found.append(lens.Differences(layer=last, naming=(nothing, nothing), **at))  # type: ignore[arg-type]
    early, late = lens.patchscopes(model, engine, clean, found, draws=2, seed=0)
    assert late[1] == {planted: len(lens.SCALES)}
    assert late[2].total() == 2 * len(lens.SCALES)
    assert planted not in late[2]
    by_hand = Counter[int]()
    for scale in lens.SCALES:
        vector = scale * torch.nn.functional.normalize(row[0], dim=0) * clean.states[sites[0]][-1].norm()
        with edited(model, {sites[0]: lambda tensor, vector=vector: tensor[:, -1].copy_(vector)}):
            by_hand[int(forward(model, torch.tensor([ids])).logits[0, -1].argmax())] += 1
    assert early[1] == by_hand


def test_shipped_texts_are_many_and_no_two_are_alike() -> None:
    assert len(passages()) == 64
    assert len(texts.distinct([text for _, text in passages()])) == 64
    assert len({text for _, text in openings(80)}) == len(openings(80)) == 80


# ---- a run of it ---------------------------------------------------------------------------------------------------------------------


def test_the_terminal_says_what_was_taught_and_writes_the_evidence(every_measure: Path, tmp_path: Path) -> None:
    out = tmp_path / "evidence.json"
    said = CliRunner().invoke(app, ["words", str(every_measure / "run"), "--evidence", str(out)])
    assert said.exit_code == 0, said.output
    manifest, told = read_manifest(every_measure / "run"), json.loads(out.read_text())
    assert said.stdout.splitlines() == words.sentences(manifest)
    assert {"named", "lines", "nulls", "continuations"} <= told.keys()
    assert str(every_measure) not in out.read_text(), "no model is named"
    assert {one["name"] for one in told["nulls"]} == {"same_model#1", "random_edit#1"}


def test_a_run_without_words_says_what_to_do(tmp_path: Path, every_measure: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(every_measure / "run", run, ignore=shutil.ignore_patterns("cells"))
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["words"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    said = CliRunner().invoke(app, ["words", str(run)])
    assert said.exit_code != 0
    assert "Add `words`" in str(said.exception)


def test_every_named_line_is_in_a_sentence_and_silence_is_said() -> None:
    taught = line(why_not=None, text="Thank", where="passages", values=[0.5, 0.6], layer=None, token=5)
    phrase = line(
        why_not=None, reader="continuations", text="begins with “Thank you”", where="prompts", values=[1.0, 1.0, -1.0], layer=None, size=0.3
    )
    manifest = {"words": {"lines": [taught, phrase], "ranked": 10}}
    said = words.sentences(manifest)
    assert any("begins with “Thank you” (alone on 2 of 3 held-out seeds, the other way on 1" in one for one in said)
    assert any("“Thank”" in one and "10 ranked tokens" in one for one in said)
    silent = words.sentences({"words": {"lines": [line(why_not=judge.BEYOND)], "ranked": 10}})
    assert silent == [f"{words.SILENT}: of 1 lines of evidence 1 is no larger than null pairs show."]
    assert words.sentences({}) == []


def test_seeds_that_are_continued_are_drawn_alike_for_both_models_and_a_copy_has_no_line(pair: Path) -> None:
    study = make_study({
        "pair": {"base": str(pair / "base"), "tuned": str(pair / "base")}, "prompts": {"file": str(pair / "prompts.jsonl")},
        "measures": [{"words": dict(EXPERIMENTS["words"].few)}],
    })  # fmt: skip
    with TemporaryDirectory() as place:
        finish(study, Path(place) / "run", device="cpu")
        told = read_manifest(Path(place) / "run")["words"]
    assert told["lines"] == []
    assert all(one["base"] == one["tuned"] for one in told["texts"])
    assert words.sentences({"words": told}) == [f"{words.SILENT}: of 0 lines of evidence there is none, for both models do the same."]


def test_lines_are_what_whole_passes_and_recorded_texts_say(every_measure: Path) -> None:
    run = Rerun(every_measure / "run", EXPERIMENTS, "cpu")
    rows = read_rows(every_measure / "run").filter(pl.col("measure") == "words", pl.col("control").is_null())
    held: dict[str, int] = {}
    for row in rows.sort("metric", "unit", "prompt").iter_rows(named=True):
        if held.get(row["metric"], 0) < 12:
            with contextlib.suppress(NotRecomputed):
                assert verify.again(run, row) == pytest.approx(row["value"], abs=2e-4), row
                held[row["metric"]] = held.get(row["metric"], 0) + 1
    assert held.keys() == {TOKEN, LENS, FEATURE}


def test_a_run_says_by_depth_what_both_models_decide(every_measure: Path) -> None:
    told = read_manifest(every_measure / "run")["words"]
    assert [one["where"] for one in told["depth"]] == ["neutral", "prompts"]
    for one in told["depth"]:
        for side in ("base", "tuned"):
            assert len(one[side]["kl_nats"]) == len(one[side]["top1_share"]) == len(one[side]["tops"]) > 1
            assert one[side]["kl_nats"][-1] == pytest.approx(0, abs=1e-5)
            assert one[side]["top1_share"][-1] == 1.0
            assert all(len(layer) == len(one["prompts"]) for layer in one[side]["tops"])
    assert {(one["layer"], one["where"]) for one in told["scopes"]} <= {(one["layer"], one["where"]) for one in told["heads"]}
    for one in told["scopes"]:
        assert 0 < sum(n for _, n in one["read"]) <= one["of"] == 12
        assert sum(n for _, n in one["random"]) <= 12 * one["draws"]
    titles = [
        part.get("folded")
        for part in page.words(SimpleNamespace(manifest={"words": told}, rows=pl.DataFrame({"measure": ["words"]}))).parts
        if isinstance(part, dict)
    ]  # type: ignore[arg-type]
    assert sum("How early each model decides" in str(title) for title in titles) == 2
    assert sum("(patchscope), at 12 lengths" in str(title) for title in titles) == 1
    assert sum("The token that is read at each layer" in str(title) for title in titles) == 2
