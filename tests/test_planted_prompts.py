"""P18: faults of prompts. Each is an error by name, or changes nothing above the noise floor."""

import pytest
import torch

from mechdiff.engine.prompts import Prompt
from mechdiff.engine.rendering import PromptPolicy, render
from mechdiff.engine.replay import replay
from mechdiff.engine.speech import speak
from mechdiff.errors import PromptError
from mechdiff.measures.outcome import kl_nats
from pico import pico, prompts
from tokenizers_made import BOS, CHATML, bpe_tokenizer, byte_tokenizer

TEXT = "Қазақ тілі – түркі тілдерінің бірі 😀."
LENGTHS = {"max_base": 512, "max_tuned": 512}


def test_p18_a_tokenizer_without_a_template_is_an_error_never_a_fallback() -> None:
    with pytest.raises(PromptError, match="asks for the tuned model's chat template, but its tokenizer has none"):
        render([Prompt(id="a", text=TEXT)], byte_tokenizer(CHATML), byte_tokenizer(), PromptPolicy(), **LENGTHS)


def test_p18_two_bos_are_an_error_that_names_the_prompt() -> None:
    with pytest.raises(PromptError, match=r"prompt 'a': two '<\|bos\|>' at the start"):
        render([Prompt(id="a", text=f"{BOS}Hello")], byte_tokenizer(), byte_tokenizer(), PromptPolicy(policy="raw"), **LENGTHS)


@pytest.mark.parametrize(
    ("name", "dtype", "floor"),
    [("llama", torch.float32, 3e-12), ("gpt2", torch.float32, 3e-12), ("llama", torch.bfloat16, 2e-3)],
)
@torch.inference_mode()
def test_p18_padding_on_the_left_changes_nothing(name: str, dtype: torch.dtype, floor: float) -> None:
    """With rotary positions as it is, with learned ones by explicit position ids: without them the prompt would be read in another place."""
    model = pico(name, dtype=dtype)
    ids = torch.tensor([prompts(1, seed=5)[0]])
    padded, mask = torch.cat([torch.full((1, 4), 258), ids], 1), torch.cat([torch.zeros(1, 4), torch.ones_like(ids)], 1).long()
    plain = model.net(ids).logits[:, -1].float()
    placed = model.net(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, -1].float()
    assert kl_nats(placed, plain).max() <= floor
    if dtype == torch.float32:
        misplaced = model.net(padded, attention_mask=mask, position_ids=torch.arange(padded.shape[1])[None]).logits[:, -1].float()
        assert (kl_nats(misplaced, plain).max() > 1e-6) == (name == "gpt2"), "only learned positions mind"


def test_p18_prompts_of_other_lengths_beside_it_change_no_answer() -> None:
    model, asked = pico("llama"), prompts(6, seed=6)
    how = {"max_tokens": 6, "stop": ()}
    together = speak(model, replay, asked, **how)
    for ids, said in zip(asked, together, strict=True):
        assert speak(model, replay, [ids], **how)[0].tolist() == said.tolist()


def test_p18_models_that_cut_otherwise_are_paired_by_bytes() -> None:
    fine, coarse = byte_tokenizer(CHATML), bpe_tokenizer([TEXT] * 3, 400, CHATML)
    (one,) = render([Prompt(id="a", text=TEXT)], fine, coarse, PromptPolicy(), **LENGTHS)
    assert len(one.ids_base) > len(one.ids_tuned) > len(one.positions) / 2
    for base, tuned in one.positions[1:]:
        assert fine.decode(one.ids_base[: base + 1]) == coarse.decode(one.ids_tuned[: tuned + 1])
