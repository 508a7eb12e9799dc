"""A tiny network, its tokenizer and its prompts are made in code: truths are planted in it when no model is given."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIALS = (BOS, EOS, PAD)

CHATML = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A chat template of the usual kind: BOS, then role, content and EOS for each message, then the generation prompt."""


# ---- the network -------------------------------------------------------------------------------------------------------------------


def random_net(config: Any, *, seed: int = 0, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A random network whose states and logits have spread enough for effects to be seen."""
    torch.manual_seed(seed)
    net = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval().float()
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return net.to(dtype)


def tiny_net(seed: int = 0, entropy_nats: float = 3.5) -> Any:
    """A Llama of 4 blocks, d_model 64, 8 heads, 4 key-value heads and 259 tokens, random, whose unembedding is scaled until its next-token laws
    have about this mean entropy."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    net = random_net(config, seed=seed)
    ids = torch.tensor(token_prompts(1, longest=60, shortest=60))
    low, high = 0.1, 100.0
    head = net.lm_head.weight.data.clone()
    for _ in range(30):
        middle = (low * high) ** 0.5
        net.lm_head.weight.data = head * middle
        with torch.inference_mode():
            law = net(ids).logits.double().softmax(-1)
        low, high = (middle, high) if float(-(law * law.log()).sum(-1).mean()) > entropy_nats else (low, middle)
    return net


def wide_net(seed: int = 0) -> Any:
    """A Llama of 3 blocks, d_model 256 and biases in its MLPs (which are 0): rows of its unembedding hardly overlap, as those of real models."""
    config = LlamaConfig(
        vocab_size=259, hidden_size=256, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, mlp_bias=True,
        max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    net = random_net(config, seed=seed)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return net


LENGTH, WRITTEN = 4.0, 0.8
"""Of the embeddings of `halving_net`, and of what block 0 writes in its tuned model."""


def halving_net() -> Any:
    """Embeddings, then an MLP whose bias the tuned model sets, then one neuron that takes half off, and logits that read its direction alone."""
    net = wide_net()
    with torch.no_grad():
        for block in net.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.fill_(1)
        net.model.norm.weight.fill_(1)
        embedding = net.model.embed_tokens.weight
        embedding[:, 0] = 0
        embedding.mul_(LENGTH / embedding.norm(dim=1, keepdim=True))
        seen = WRITTEN / stream_rms(WRITTEN)
        mlp = net.model.layers[1].mlp
        for weight, gain in ((mlp.gate_proj.weight, 10.0), (mlp.up_proj.weight, 1.0)):
            weight[0] = 0
            weight[0, 0] = gain
        fired = seen * torch.nn.functional.silu(torch.tensor(10 * seen)).item()
        mlp.down_proj.weight[0, 0] = -WRITTEN / 2 / fired
        net.lm_head.weight[:, 1:] = 0
        net.lm_head.weight[:, 0] = torch.linspace(-0.5, 0.5, len(net.lm_head.weight))
    return net


def stream_rms(written: float) -> float:
    """Of a residual stream of `halving_net` with this much of what block 0 writes."""
    return float(((LENGTH**2 + written**2) / 256 + 1e-6) ** 0.5)


def write_for_halving(net: Any) -> None:
    net.model.layers[0].mlp.down_proj.bias[0] = WRITTEN


def tiny_mixture(seed: int = 0) -> Any:
    """A Mixtral of 4 blocks, d_model 32 and 4 experts a block, random, which sends each token to 2."""
    config = MixtralConfig(
        vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=128, tie_word_embeddings=False, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    return random_net(config, seed=seed)


def token_prompts(n: int = 3, *, seed: int = 0, shortest: int = 5, longest: int = 24) -> list[list[int]]:
    """Random byte sequences of different lengths, each with a BOS in front."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (n,), generator=generator).tolist()
    return [[256, *torch.randint(0, 256, (length - 1,), generator=generator).tolist()] for length in lengths]


def save(net: Any, tokenizer: Any, folder: Path) -> Path:
    """A model folder that `mechdiff run` can take."""
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- the tokenizer -----------------------------------------------------------------------------------------------------------------


def byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte, by byte: printable ones stand for themselves."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def byte_tokenizer(
    chat_template: str | None = None, *, adds_bos: bool = True, order: Iterable[int] | None = None
) -> PreTrainedTokenizerFast:
    """256 tokens that are the bytes (id = byte), then bos 256, eos 257, pad 258; decoding gives back what was encoded.

    `order`: other ids, the new id i is the old token `order[i]`.
    """
    new = {old: i for i, old in enumerate(range(259) if order is None else order)}
    vocabulary = {character: new[byte] for byte, character in enumerate(byte_characters())}
    return wrapped(byte_level(models.BPE(vocab=vocabulary | {text: new[256 + i] for i, text in enumerate(SPECIALS)}, merges=[])), chat_template,
                   adds_bos=adds_bos)  # fmt: skip


def byte_level(model: models.Model, *, words: bool = False) -> Tokenizer:
    """A tokenizer over byte characters; `words` keeps tokens inside words."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def wrapped(tokenizer: Tokenizer, chat_template: str | None, *, adds_bos: bool, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """A fast tokenizer of transformers, with the special tokens behind (or where the model has them already)."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    steps: list[processors.PostProcessor] = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        bos = (BOS, tokenizer.token_to_id(BOS))
        steps.append(processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[bos]))
    tokenizer.post_processor = processors.Sequence(steps)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    made.chat_template = chat_template
    return made
