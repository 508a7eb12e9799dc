"""What a user saw: "IndexError: index out of range in self" in the middle of a run, of an adapter whose tokenizer has tokens without a row in
the base; and peft's own message, with nothing to do, where the adapter's file holds the larger embedding."""

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from mechdiff.errors import ModelError
from mechdiff.measures.catalogue import EXPERIMENTS, make_study
from mechdiff.models.switches import attach_adapter
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
from mechdiff.validate.made import save
from pico import pico, twin
from tokenizers_made import CHATML, byte_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
LORA = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)


@pytest.mark.parametrize("printed_by", ["template", "prompt"])
def test_a_token_beyond_the_embedding_is_refused_before_anything_is_computed(printed_by: str, tmp_path: Path) -> None:
    base = pico("llama").net
    save(base, byte_tokenizer(CHATML), tmp_path / "base")
    larger = byte_tokenizer(("<|new|>" if printed_by == "template" else "") + CHATML)
    larger.add_tokens(["<|new|>"], special_tokens=True)
    save(get_peft_model(twin(pico("llama")).net, LORA), larger, tmp_path / "adapter")
    text = "What is 1?" if printed_by == "template" else "What is <|new|>?"
    (tmp_path / "p.jsonl").write_text("".join(f'{{"text": "{text} {i}"}}\n' for i in range(6)))
    pair = {"base": str(tmp_path / "base"), "tuned": str(tmp_path / "adapter")}
    study = make_study({"pair": pair, "prompts": {"file": str(tmp_path / "p.jsonl")}, "measures": ["divergence"]})
    with pytest.raises(ModelError, match=r"token 259 \(<\|new\|>\) in prompt .* its embedding has 259 rows.*resize_token_embeddings"):
        prepare(study, RunOptions(device="cpu"), EXPERIMENTS)


def test_an_adapter_with_a_larger_embedding_is_refused_with_what_to_do(tmp_path: Path) -> None:
    larger = twin(pico("llama")).net
    larger.resize_token_embeddings(261)
    get_peft_model(larger, LORA).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(ModelError, match=r"Resize the base to that number \(resize_token_embeddings\).*or merge the adapter"):
        attach_adapter(pico("llama").net, tmp_path / "adapter")
