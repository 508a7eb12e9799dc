#!/bin/sh
# One long text changes the numbers of every shorter text of its batch (longrope), or of every text after it (dynamic).
#
# Packages: torch 2.13.0, transformers 5.23.0 (Phi-3 with longrope, Llama with dynamic scaling; original context 16 tokens here,
#   4,096 in Phi-3 and Phi-4-mini of 128k).
# Guess: a decoder's logits at a place depend on the text up to it: not on what follows, not on other rows of the
#   batch, and not on what the process read before.
# Behaviour: longrope picks its factors by the longest position of the whole batch, so that one text beyond the original context
#   gives every other row other factors, and a text that grows beyond it gets other logits at its first tokens.
#   Dynamic scaling keeps the base of the longest text seen so far until a text within the original context comes.
# Hurt: who batches prompts of mixed length, or reads many in a row: the same prompt has two distributions; its KL to itself
#   stands beside the effects looked for. Scores by chunks through the cache differ from scores at once.
# Instead: keep prompts below and above the original context in batches of their own, and one process (or a fresh
#   rotary module) for texts beyond it; look for `longrope` and `dynamic` in `config.rope_parameters`.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   longrope: 10 tokens, KL in nats to the same tokens alone
#     beside a text of 16 tokens          0.000000
#     beside a text of 24 tokens          0.124851
#     as the first 10 of a text of 24     0.124851
#   dynamic: 20 tokens, KL in nats to the first time they are read
#     read again                          0.000000
#     after another text of 48 tokens     0.237165
#     after another text of 8 tokens      0.000000
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, pad_token_id=0)
longrope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
            "original_max_position_embeddings": 16}
dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
many = torch.randint(3, 99, (2, 48), generator=torch.Generator().manual_seed(1))


def network(model):
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def law(ids, row=0, n=10, model=None):
    """log-probabilities at the first n tokens of one row; rows are padded on the right and masked."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(ids != 0).long()).logits[row, :n].log_softmax(-1)


def kl(a, b):
    return float((a.exp() * (a - b)).sum(-1).mean())


torch.manual_seed(0)
phi = network(Phi3ForCausalLM(Phi3Config(**sizes, max_position_embeddings=64, original_max_position_embeddings=16,
                                         rope_parameters=longrope)))
short = many[:1, :10]


def beside(n):
    """The short text in a batch with another one of n tokens."""
    batch = torch.zeros(2, max(n, 10), dtype=torch.long)
    batch[0, :10], batch[1, :n] = short[0], many[1, :n]
    return batch


alone = law(short, model=phi)
print("longrope: 10 tokens, KL in nats to the same tokens alone")
in_context, beyond = (kl(alone, law(beside(n), model=phi)) for n in (16, 24))
grown = kl(alone, law(many[:1, :24], model=phi))
print(f"  beside a text of 16 tokens          {in_context:.6f}")
print(f"  beside a text of 24 tokens          {beyond:.6f}")
print(f"  as the first 10 of a text of 24     {grown:.6f}")

torch.manual_seed(0)
llama = network(LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=16, rope_parameters=dynamic)))
print("dynamic: 20 tokens, KL in nats to the first time they are read")
first = law(many[:1, :20], n=20, model=llama)
again = kl(first, law(many[:1, :20], n=20, model=llama))
law(many[1:, :48], model=llama)
after_long = kl(first, law(many[:1, :20], n=20, model=llama))
law(many[1:, :8], model=llama)
after_short = kl(first, law(many[:1, :20], n=20, model=llama))
print(f"  read again                          {again:.6f}")
print(f"  after another text of 48 tokens     {after_long:.6f}")
print(f"  after another text of 8 tokens      {after_short:.6f}")
same = in_context < 1e-5 and beyond > 0.1 and grown > 0.1 and again < 1e-5 and after_long > 0.1 and after_short < 1e-5
sys.exit(0 if same else "the behaviour has changed")
PY
