"""A tiny pair, its prompts and one study of every measure and stage. It imports no mechdiff, so two versions of it can run the very same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MEASURES: list[Any] = [
    {"divergence": {"continuation": 3}},
    {"weights": {"input_prompts": 2}},
    {"grafting": {"candidates": 2, "picks": 2, "select_prompts": 2, "report_prompts": 4}},
    {"similarity": {"permutations": 3, "words": True}},
    {"patching": {"sites": ["attn_out", "resid_post"], "arms": ["identity", "shift", "mean", "resample", "oracle"],
        "positions": ["decision", "last_2", "all"], "windows": [2]}},
    {"self_repair": {"closer": [1]}},
    {"factorial": {"all_positions_layers": 2}},
    "chat_template",
    {"transport": {
        "sites": ["resid_post", "z"], "layers": [1, 2], "closer": [1, 2], "strengths": [0.5], "rows_per_prompt": 4, "permutations": 10,
        "dimensions": 2, "clusters": 2, "cuts": [2, "full"], "positions": ["last_2"],
        "maps": ["diag_affine", "anchored_ridge", "anchored_procrustes", "rrr", "ridge", "standardised_ridge", "pca", "procrustes",
                 "whitened_procrustes", "logit_subspace", "logit_subspace_joint", "per_cluster", "rank_truncated", "rescaled", "norm_matched"],
    }},
    {"rank": {"sites": ["attn_out", "resid_post"], "closer": [1], "strengths": [0.5], "fisher_samples": 1, "draws": 1}},
    {"steering": {
        "closer": [1], "strengths": [0.5], "windows": [2], "draws": 1, "contrast": True, "side_prompts": 3, "test_draws": 2, "texts": 1,
        "continuation": 2, "max_side_kl_nats": 100.0, "max_perplexity_ratio": 100.0,
    }},
    {"off_manifold": {"folds": 4}},
    {"interpolation": {
        "closer": [1], "strengths": [-0.5, 0.5, 2], "report_prompts": 5, "side_prompts": 2, "answers": 1, "answer_strengths": [0, 1.5],
        "continuation": 4, "modules": ["L1.mlp", "attn+L2"],
    }},
    {"heads": {
        "hot": 1, "select_prompts": 4, "draws": 2, "picks": 2, "top": 2, "null_edits": 2, "network_draws": 1, "z_swap": [0.5],
        "attention_prompts": 2,
    }},
    {"attribution": {"steps": 1, "validated": 2, "select_prompts": 4}},
    {"behaviour": {
        "closer": [1], "n_probes": 9, "max_tokens": 2, "samples": 1, "openings": 1, "masked": True, "scored_layers": 1, "scored_prompts": 4,
        "spoken_prompts": 2,
    }},
    {"panel": {"per_group": 1}},
    {"words": {
        "passages": 6, "neutral": 6, "openings": 6, "prompts": 6, "max_tokens": 5, "lens_layers": 1, "vectors": 2, "edits": 1, "permutations": 2,
        "amplify": [3],
    }},
]  # fmt: skip
"""Few draws of everything; every option that adds a stage or a kind of rows."""

SPLITS = {"fit": range(10), "select": range(10, 15), "report": range(15, 21)}
"""Numbers of the prompts of each split."""

CHAT = "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}<|assistant|>"
SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>")


def made(folder: Path) -> Path:
    """Writes the pair `base` and `tuned`, `prompts.jsonl` and `study.yaml` into a folder; returns the study's path."""
    base = random_net()
    tokenizer(CHAT).save_pretrained(folder / "base")
    base.save_pretrained(folder / "base")
    for number, layer in enumerate(base.model.layers):
        change(layer, np.random.default_rng(100 + number))
    tokenizer(CHAT.replace("<|assistant|>", "<|model|>")).save_pretrained(folder / "tuned")  # another template: templates are crossed too
    base.save_pretrained(folder / "tuned")
    for split, numbers in SPLITS.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(prompt(number)) + "\n" for number in numbers))
    prompts = {split: f"{split}.jsonl" for split in SPLITS}
    study = {"pair": {"base": "./base", "tuned": "./tuned"}, "prompts": prompts, "measures": MEASURES}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def random_net() -> LlamaForCausalLM:
    """A Llama of 3 blocks, d_model 16 and 4 heads. Its weights come from numpy, whose bits, unlike torch's, depend on no processor's vector unit."""
    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    ))  # fmt: skip
    generator = np.random.default_rng(0)
    for parameter in net.parameters():
        noise = torch.from_numpy(generator.standard_normal(tuple(parameter.shape))).float()
        parameter.data = noise * 0.3 if parameter.ndim > 1 else 1 + noise * 0.1
    return net.eval()


def change(layer: torch.nn.Module, generator: np.random.Generator) -> None:
    """Adds noise of rank 2 to every matrix of a block."""
    for weight in (parameter for parameter in layer.parameters() if parameter.ndim > 1):
        left, right = (torch.from_numpy(generator.standard_normal((size, 2))).float() for size in weight.shape)
        weight.data = weight.data + 0.05 * left @ right.T


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, and three special ones."""
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    bos = [(SPECIALS[0], bare.token_to_id(SPECIALS[0]))]
    bare.post_processor = processors.TemplateProcessing(single=f"{SPECIALS[0]} $A", pair=f"{SPECIALS[0]} $A $B", special_tokens=bos)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=bare, **names, clean_up_tokenization_spaces=False, chat_template=template)


def prompt(number: int) -> dict[str, Any]:
    """One in three has a number as its answer, one in three has options to choose from."""
    line: dict[str, Any] = {
        "id": f"p{number}",
        "text": f"Say something about {number * 7919 % 1000}{'!' * (number % 4)}",
        "meta": {"language": "en"},
    }
    if number % 3 == 1:
        line |= {"label": str(number)}
    if number % 3 == 2:
        line |= {"label": "yes", "options": ["yes", "no"]}
    return line
