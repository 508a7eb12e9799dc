"""Faults of prompts, pairs and answers (docs/FAULTS.md): A5, A6, A9 to A12, A21, A29, A30."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from torch import nn
from transformers import LlamaConfig

import mechdiff
import pico
from mechdiff.architectures.sites import Site
from mechdiff.curate.curation import Recipe, curate
from mechdiff.curate.fairness import Tokenizers
from mechdiff.engine.activations import capture
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.replay import Write, replay
from mechdiff.errors import PromptError, StudyError
from mechdiff.measures.behaviour.answers import choice
from mechdiff.measures.behaviour.formula import said_values
from mechdiff.measures.behaviour.phrases import read_phrases
from mechdiff.measures.catalogue import EXPERIMENTS
from mechdiff.models.pair import wrap
from mechdiff.models.sources import resolve
from mechdiff.prompts.rendering import Rendered, render, tail
from mechdiff.prompts.sets import Prompt
from mechdiff.prompts.templates import PromptPolicy
from mechdiff.report import record
from mechdiff.study.config import RunOptions
from mechdiff.study.execution import positions
from mechdiff.study.prepare import prepare
from mechdiff.validate import edits, planted
from mechdiff.validate.made import tiny_net
from prototype.tiny_runs import PLAIN, Finished, finish, save_pair, study
from tokenizers_made import BOS, CHATML, bpe_tokenizer, byte_tokenizer

TEXT = "Қазақ тілі – түркі тілдерінің бірі."
LENGTHS = {"max_base": 512, "max_tuned": 512}
SAME = PromptPolicy()


def rendered(base: Any, tuned: Any, policy: PromptPolicy = SAME, text: str = TEXT) -> Rendered:
    (one,) = render([Prompt(id="a", text=text)], base, tuned, policy, **LENGTHS)
    return one


# ---- A5: a missing chat template was swallowed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["same_text", "native"])
def test_a05_a_missing_template_ends_the_run_before_it_begins(policy: str, tmp_path: Path) -> None:
    net = pico.pico("llama").net
    save_pair(tmp_path, net, net, byte_tokenizer(CHATML))
    byte_tokenizer().save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "chat_template.jinja").unlink()
    given = {"file": str(tmp_path / "prompts.jsonl"), "policy": policy}
    with pytest.raises(PromptError, match=r"asks for the tuned model's chat template, but its tokenizer has none.*Choose policy `raw`"):
        mechdiff.run(study(tmp_path, PLAIN, prompts=given), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    bare = prepare(study(tmp_path, PLAIN), RunOptions(), EXPERIMENTS).rendered["report"]
    assert all(one.text_base == one.text_tuned == one.prompt.text for one in bare.values())


def test_a05_both_models_see_one_text_and_its_hash_is_in_the_record(edited: Finished) -> None:
    said = edited.manifest["prompts"]
    assert said["policy"] == "raw"
    assert len(set(said["rendered_sha256"]["report"])) == said["n"]["report"]
    one, other = (rendered(byte_tokenizer(CHATML), byte_tokenizer(template)) for template in (CHATML, "{{ messages[0].content }}"))
    assert one.text_base == one.text_tuned
    assert other.text_base == other.text_tuned == TEXT, "the tuned model's template, for both"
    assert one.sha256 != other.sha256


# ---- A6: the base's state was read at the tuned model's index --------------------------------------------------------------------------


def test_a06_a_place_is_a_pair_that_ends_at_one_byte() -> None:
    fine, coarse = byte_tokenizer(CHATML), bpe_tokenizer([TEXT] * 3, 400, CHATML)
    one = rendered(fine, coarse)
    read = {"base": (fine, one.ids_base), "tuned": (coarse, one.ids_tuned)}
    for word in ("decision", "spread_4"):
        texts = {side: [cut.decode(ids[: i + 1]) for i in positions(one, word, side)] for side, (cut, ids) in read.items()}
        assert texts["base"] == texts["tuned"]
    at_tuned_index = fine.decode(one.ids_base[: positions(one, "decision", "tuned")[0] + 1])
    assert at_tuned_index != fine.decode(one.ids_base), "what the prototype read: the base in the middle of the prompt"
    assert one.positions[-1] == (len(one.ids_base) - 1, len(one.ids_tuned) - 1)


# ---- A9: the "base" was a sibling -------------------------------------------------------------------------------------------------------


def test_a09_a_sibling_is_warned_of_on_the_page(tmp_path: Path) -> None:
    parent, tokenizer = tiny_net(), byte_tokenizer()
    first, second = (planted.plant(edits.child(seed), n_prompts=1).tuned.net for seed in (1, 2))
    save_pair(tmp_path, first, second)
    pico.save(parent, tokenizer, tmp_path / "parent")
    (tmp_path / "tuned" / "README.md").write_text("---\nbase_model: some-one/parent\n---\n")
    asked = study(tmp_path, PLAIN, pair={"alternatives": [str(tmp_path / "parent")]})
    found = finish(asked, tmp_path / "run").manifest
    said = " ".join(record.warnings(found))
    assert "says that it was made from some-one/parent; the base given is" in said
    assert f"tuned is nearer to {tmp_path / 'parent'}" in said
    family = found["lineage"]
    assert family["relative_distance"] / family["alternatives"][0]["relative_distance"] == pytest.approx(2**0.5, rel=0.05)
    assert resolve(str(tmp_path / "parent")).ref == family["alternatives"][0]["ref"]


# ---- A10 to A12: two BOS, the last content token, positions paired by their number ------------------------------------------------------


@pytest.mark.parametrize("text_or_template", ["text", "template"])
def test_a10_two_bos_are_an_error(text_or_template: str) -> None:
    twice = byte_tokenizer("{{ bos_token }}" + CHATML)
    policy = PromptPolicy(policy="raw") if text_or_template == "text" else SAME
    with pytest.raises(PromptError, match=r"prompt 'a': two '<\|bos\|>' at the start"):
        rendered(twice, twice, policy, f"{BOS}Hello" if text_or_template == "text" else "Hello")
    once = rendered(byte_tokenizer(CHATML), byte_tokenizer(CHATML))
    assert list(once.ids_base).count(256) == 1, "a template prints its own: the tokenizer adds none"


def test_a11_the_end_of_the_users_text_is_not_in_the_generation_prompt() -> None:
    """The text is a word that the generation prompt says again."""
    tokenizer = byte_tokenizer(CHATML)
    decision, last = (rendered(tokenizer, tokenizer, PromptPolicy(position=place), "assistant") for place in ("decision", "last_user"))
    assert decision.text_base.endswith("<|assistant|>\n")
    assert last.text_base == f"{BOS}<|user|>\nassistant"
    assert decision.ids_base[: len(last.ids_base)] == last.ids_base
    assert last.positions[-1] == (len(last.ids_base) - 1,) * 2


def test_a12_windows_and_rows_of_two_tokenizers_are_the_same_bytes_or_refused(tmp_path: Path) -> None:
    texts = [f"{TEXT} {number}" for number in range(20)]
    coarse = bpe_tokenizer(texts, 400)
    sizes = pico.SIZES | {"vocab_size": len(coarse)}
    save_pair(tmp_path, pico.pico("llama").net, pico.make_net(LlamaConfig(**sizes), seed=1))
    coarse.save_pretrained(tmp_path / "tuned")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    one = rendered(byte_tokenizer(), coarse, PromptPolicy(policy="raw"))
    assert tail(one) < 6
    windows = {"patching": {"sites": ["resid_post"], "arms": ["identity"], "positions": ["decision", "last_6"]}}
    skipped = {entry["what"]: entry["why"] for entry in prepare(study(tmp_path, windows), RunOptions(), EXPERIMENTS).plan.skipped}
    assert "cut the end of" in skipped["patching at last_6"]
    many = {"transport": {"sites": ["resid_post"], "rows_per_prompt": 60}}
    with pytest.raises(
        StudyError, match=r"rows_per_prompt: given 60, but the training prompt .* tokens that end at the same byte for both models"
    ):
        prepare(study(tmp_path, many), RunOptions(), EXPERIMENTS)


# ---- A21: laws masked within a model, and a filter that selects on the treatment ---------------------------------------------------------


def grown(net: nn.Module) -> nn.Module:
    """The same network with eight tokens more."""
    draw = torch.Generator().manual_seed(0)
    for layer in (net.get_input_embeddings(), net.get_output_embeddings()):
        layer.weight = nn.Parameter(torch.cat([layer.weight.detach(), torch.randn(8, layer.weight.shape[1], generator=draw)]))
    net.config.vocab_size += 8
    return net


def test_a21_within_a_model_nothing_is_masked(tmp_path: Path) -> None:
    base, tokenizer = pico.pico("llama"), byte_tokenizer()
    tuned = pico.twin(base, edits.edit_attention)
    save_pair(tmp_path, base.net, grown(tuned.net), n_prompts=10)
    tokenizer.add_tokens([AddedToken(f"\u0644{number}", normalized=False) for number in range(8)])
    tokenizer.save_pretrained(tmp_path / "tuned")
    asked = {"sites": ["attn_out"], "layers": [1], "arms": ["identity"], "directions": "tuned<-base"}
    found = finish(study(tmp_path, PLAIN, {"patching": asked}), tmp_path / "run")
    texts = {one["id"]: one["text"] for one in map(json.loads, (tmp_path / "prompts.jsonl").read_text().splitlines())}
    site, tuned = Site(1, "attn_out"), wrap(tuned.net, side="tuned", ref="grown")
    for prompt, value in (
        found.of("patching", "kl_own_nats", site="attn_out", arm="identity", control=None).select("prompt", "value").iter_rows()
    ):
        ids = tokenizer(texts[prompt])["input_ids"]
        clean, other = (capture(one, ids, [site], [len(ids) - 1], keep_cache=True) for one in (tuned, base))
        moved = replay(tuned, [clean], [{site: Write(value=other.states[site][None])}])[0, 1]
        assert value == pytest.approx(float(kl_nats(clean.logits, moved)), rel=1e-4)
        assert value != pytest.approx(float(kl_nats(clean.logits[:259], moved[:259])), rel=1e-2), "cut to the tokens of both"
    assert found.one("divergence", "mass_outside", unit=None)["mean"] > 1e-3, "what is outside stands beside what is shared"
    whole, cut = (found.one("patching", f"kl_own{name}_nats", site="attn_out", arm="identity", control=None) for name in ("", "_shared"))
    assert (whole["flag"], whole["share"]) == ("few_prompts", None), "it is no share of a D on shared tokens"
    assert cut["flag"] == "shared_tokens;few_prompts"


def test_a21_a_filter_on_shared_tokens_says_what_it_selects(tmp_path: Path) -> None:
    things = ["river", "mountain", "teapot", "violin", "lantern", "harbour", "meadow", "compass"]
    kazakh = [f"ескі өзен туралы айтшы {thing}" for thing in things]
    english = [f"the {thing} is old {i}" for i, thing in enumerate(things)]
    lines = [{"text": text, "category": kind} for kind, texts in (("kk", kazakh), ("en", english)) for text in texts]
    (tmp_path / "source.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizers = Tokenizers(byte_tokenizer(), bpe_tokenizer(kazakh * 9, 420))
    fair = curate([str(tmp_path / "source.jsonl")], Recipe(min_shared=0.7, near=1.0), tokenizers=tokenizers).record["fairness"]
    assert fair["by_category"]["kk"]["dropped"] > fair["by_category"]["en"]["dropped"]
    assert "selects on the treatment" in fair["said"]


# ---- A29, A30: a sum of log-probabilities called per token; behaviour judged at a style token ---------------------------------------------


def test_a29_a_sum_is_no_mean_and_each_score_says_which_it_is() -> None:
    """The right option has six tokens and is the likelier by token and by byte; its sum is smaller."""
    found = choice([-6.0, -4.0, -9.0], [6, 2, 6], [12, 4, 12], 0)
    assert (found["mc_logp_sum_nats"], found["mc_logp_per_token_nats"], found["mc_logp_per_byte_nats"]) == (-6, -1, -0.5)
    assert (found["mc_correct_sum"], found["mc_correct_per_token"], found["mc_correct"]) == (0, 1, 1)
    doubled = choice([-6.0, -4.0, -9.0], [12, 4, 12], [12, 4, 12], 0)
    assert doubled["mc_logp_per_token_nats"] == -0.5, "a tokenizer that cuts twice as fine"
    assert doubled["mc_logp_per_byte_nats"] == found["mc_logp_per_byte_nats"], "the one to read does not depend on it"
    distracted = choice([-6.0, -5.0, -9.0], [6, 6, 6], [12, 12, 12], 0)
    assert (distracted["mc_correct"], distracted["mc_logp_per_byte_nats"]) == (0, -0.5), "a distractor is likelier: likely is not right"


def test_a30_an_opening_in_another_style_changes_style_alone() -> None:
    lists = read_phrases(None)
    plain, polite = (
        said_values(text, 20, lists["en"], lists.values(), "42", ended=True)
        for text in ("The answer is 42.", "Thank you for asking! The answer is 42.")
    )
    differ = {key for key in plain if plain[key] != polite[key]}
    assert {metric for metric, _ in differ} == {"style_per_100_words", "style_per_100_tokens"}
    assert plain["exact_match", None] == polite["exact_match", None] == 1
    assert plain["refusal", None] == polite["refusal", None] == 0
    wrong = said_values("Thank you for asking! The answer is 41.", 20, lists["en"], lists.values(), "42", ended=True)
    assert {key for key in wrong if wrong[key] != polite[key]} == {("exact_match", None)}
