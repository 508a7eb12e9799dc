"""A user's run ended in KeyError (OLMo with `weights`), AttributeError (LoRA on experts) or AssertionError (trainable tokens with grafting). A study
of every family and of every adapter kind of peft ends in rows, or in a MechdiffError that says why."""

from pathlib import Path
from typing import Any

import peft
import polars as pl
import pytest
import torch
from peft import LoraConfig

from adapters_made import KINDS, LORA, ON, make_pair
from mechdiff.errors import MechdiffError, ModelError
from mechdiff.store.run_folder import RunFolder
from mechdiff.store.tables import read_prompts
from mechdiff.validate.made import save
from pico import each, moved, pico, twin
from small_studies import hold_against, study
from tokenizers_made import CHATML, byte_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:peft.utils.warning.PeftWarning"),
]

CHEAP: list[Any] = [
    {"divergence": {"continuation": 2}},
    "weights",
    {"grafting": {"candidates": 2, "picks": 1, "points": 2, "select_prompts": 2, "report_prompts": 2}},
    {"patching": {"sites": ["resid_post"], "arms": ["identity"]}},
]
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
FAMILIES = ("llama", "olmo", "gpt2", "bloom", "qwen3_moe", "deepseek_v3", "lfm2")
"""The one that crashed, and those that share least; a study takes seconds."""
KINDS_HERE = (
    "lora",
    "dora",
    "lora on embedding and head",
    "lora with saved modules",
    "lora on a parameter",
    "ia3",
    "oft",
    "layer norms",
    "shadow",
)
"""Low-rank, scaling, rotating, of other modules, and one that cannot be studied."""
REFUSED = {
    "shadow": r"does not run with and without this adapter but through peft's own ShadowModel .* cannot be studied",
    "lily": r"replay and a whole forward pass disagree .*\. This model keeps state that parallel tokens share",
}
"""Shadow is no change of the network. Lily mixes its factors by a mean over all tokens of a pass: what runs beside a token changes it."""


@pytest.mark.parametrize("name", each(usual=FAMILIES))
def test_a_study_of_every_family_ends_in_rows(name: str, tmp_path: Path) -> None:
    base = pico(name)
    save(base.net, byte_tokenizer(CHATML), tmp_path / "base")
    tuned = twin(base, moved)
    save(tuned.net, byte_tokenizer(CHATML), tmp_path / "tuned")
    rows, _, prepared = study(tmp_path, "tuned", CHEAP)
    assert {"divergence", "weights", "grafting", "patching"} <= set(rows["measure"])
    hold_against(prepared, rows, base.net, tuned.net)
    whole = rows.filter(measure="grafting", arm="all", metric="kl_other_nats")["value"]
    assert len(whole)
    assert whole.is_between(-1e-6, 1e-6).all(), "all changed units in the base are the tuned model"


@pytest.mark.parametrize("kind", each(KINDS, usual=KINDS_HERE))
def test_a_study_of_every_adapter_kind_ends_in_rows_or_says_why_not(kind: str, tmp_path: Path) -> None:
    made = make_pair(tmp_path, KINDS[kind]())
    if kind in REFUSED:
        with pytest.raises(MechdiffError, match=REFUSED[kind]):
            study(tmp_path, "adapter", CHEAP)
        return
    rows, manifest, prepared = study(tmp_path, "adapter", CHEAP)
    assert {"divergence", "grafting", "patching"} <= set(rows["measure"])
    assert "weights" in set(rows["measure"]) or "its change is not compared" in " ".join(manifest["weights"]["statements"])
    hold_against(prepared, rows, pico("llama").net, made)


def test_lora_on_experts_is_taken_as_peft_takes_it(tmp_path: Path) -> None:
    made = make_pair(tmp_path, LoraConfig(r=2, target_modules=["q_proj"], **EXPERTS), "qwen3_moe")
    rows, manifest, prepared = study(tmp_path, "adapter", CHEAP)
    assert {"divergence", "grafting"} <= set(rows["measure"])
    assert "uses target_parameters=" in " ".join(manifest["weights"]["statements"])
    hold_against(prepared, rows, pico("qwen3_moe").net, made)


PROMPTS = {
    "prompt tuning": (
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "puts virtual tokens before the prompt",
    ),
    "p-tuning": (
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8),
        "puts virtual tokens before the prompt",
    ),
    "prefix tuning": (
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "puts keys and values before those of the prompt",
    ),
    "llama adapter": (
        lambda: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=2),
        "lets each block attend to trained prompts beside the text",
    ),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_an_adapter_that_is_no_change_of_the_network_is_refused(kind: str, tmp_path: Path) -> None:
    config, why = PROMPTS[kind]
    make_pair(tmp_path, config())
    with pytest.raises(ModelError, match=f"that changes the prompt or picks its tokens, not the network: it {why}.*cannot be studied"):
        study(tmp_path, "adapter", CHEAP)


@pytest.mark.parametrize(
    ("config", "why"),
    [(lambda: LoraConfig(**LORA, alora_invocation_tokens=[97, 98]), "not the network: it acts only from its invocation tokens on"),
     (lambda: peft.PolyConfig(r=2, task_type="CAUSAL_LM", **ON), "peft")],
    ids=["alora", "poly"],
)  # fmt: skip
def test_what_needs_more_than_tokens_to_run_is_refused(config: Any, why: str, tmp_path: Path) -> None:
    make_pair(tmp_path, config())
    with pytest.raises(MechdiffError, match=why):
        study(tmp_path, "adapter", CHEAP)


def test_an_adapter_of_empty_tensors_is_refused_in_words(tmp_path: Path) -> None:
    """As DeepSpeed ZeRO-3 saves it where the weights were not gathered."""
    from safetensors.torch import load_file, save_file

    make_pair(tmp_path, LoraConfig(**LORA))
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: torch.zeros(0) for key in load_file(path)}, path)
    for measures in (CHEAP, CHEAP[:1]):
        with pytest.raises(ModelError, match=r"its tensor base_model\S+ has shape \(0,\): nothing is in it\. DeepSpeed ZeRO-3"):
            study(tmp_path, "adapter", measures)


def test_trainable_tokens_are_grafted_with_the_embedding(tmp_path: Path) -> None:
    make_pair(tmp_path, KINDS["lora with tokens"]())
    rows, _, _ = study(tmp_path, "adapter", CHEAP)
    alone = rows.filter(measure="grafting", arm="alone", metric="kl_other_nats").group_by("site").agg(pl.col("value").mean())
    assert set(alone["site"]) == {"embed", "attn"}
    none = float(rows.filter(measure="grafting", arm="none", metric="kl_other_nats")["value"].mean())  # type: ignore[arg-type]
    assert (alone["value"] < none).all(), "each of them carries a part"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_line_separator_inside_a_prompt_is_no_end_of_its_line(tmp_path: Path, separator: str) -> None:
    """The page of a finished run ended in "cannot be read", of a prompts.jsonl that mechdiff itself had written."""
    study = "pair: {base: a, tuned: b}\n"
    with RunFolder.open(tmp_path / "run", config_hash="0", study_text=study) as run:
        run.write_prompts([{"split": "report", "id": "p0", "text_base": f"one{separator}two"}, {"split": "report", "id": "p1"}])
    assert [line["id"] for line in read_prompts(tmp_path / "run")] == ["p0", "p1"]
    assert read_prompts(tmp_path / "run")[0]["text_base"] == f"one{separator}two"
