#!/bin/sh
# A Doge model with experts scores a text otherwise than it says it: in one pass a token's experts depend on the tokens behind it.
#
# Packages: torch 2.13.0, transformers 5.23.0.
# Guess: a decoder's log-probability of a token in one forward pass of the text is the one that it has while the text is generated,
#   and no other text in the batch has a part in it, as in Doge without experts and in other mixtures of experts (Qwen3-MoE).
# Behaviour: `DogeForCausalLM` with `is_moe=True` cuts the router's scores of all tokens of a pass in two halves, so that token and
#   scores are paired across positions and across texts. A later token changes what is said before it, so do the texts beside it, and
#   token by token with a cache gives other numbers than one pass. Nothing is said; a comment in the source alone tells it.
# Hurt: who ranks answers or options by log-likelihood, measures perplexity, distils or trains with teacher forcing (the training pass
#   is not causal and the generating one is), reads activations, or compares such a model with its fine-tune in batches.
# Instead: read and score token by token with a cache, one text at a time; check a mixture for causality before its numbers are used.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0, largest difference of log p at a text's first 8 positions
#   model          another last token   another text beside it   token by token with a cache
#   doge           no                   no                       no
#   doge, experts  yes                  yes                      yes
#   qwen3_moe      no                   no                       no
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cd "$work"
cat > seen.py <<'PY'
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, largest difference of log p at a text's first 8 positions")
sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
experts = dict(num_experts=16, num_experts_per_tok=2)
models = {
    "doge": ("doge", dict(is_moe=False)),
    "doge, experts": ("doge", dict(is_moe=True) | experts),
    "qwen3_moe": ("qwen3_moe", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8)),
}
draw = torch.Generator().manual_seed(1)
text, other = torch.randint(3, 99, (2, 1, 9), generator=draw)
last = text.clone()
last[0, -1] = 3 + (int(text[0, -1]) - 2) % 96
wrong = []
print("model          another last token   another text beside it   token by token with a cache")
for name, (family, more) in models.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **more)).float().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    with torch.no_grad():
        plain = model(input_ids=text).logits[0, :8].log_softmax(-1)
        changed = model(input_ids=last).logits[0, :8].log_softmax(-1)
        beside = model(input_ids=torch.cat([text, other])).logits[0, :8].log_softmax(-1)
        cache, said = DynamicCache(config=model.config), []
        for at in range(8):
            said.append(model(input_ids=text[:, at : at + 1], past_key_values=cache, use_cache=True).logits[0, -1].log_softmax(-1))
    moved = [float((plain - one).abs().max()) for one in (changed, beside, torch.stack(said))]
    shown = ["yes" if one > 1e-2 else "no" if one < 1e-4 else f"{one:.1e}" for one in moved]
    print(f"{name:14} {shown[0]:20} {shown[1]:24} {shown[2]}")
    if shown != [("yes" if name == "doge, experts" else "no")] * 3:
        wrong.append((name, moved))
sys.exit(f"the behaviour has changed: {wrong}" if wrong else 0)
PY
python3 -m venv new
new/bin/pip install --quiet --no-compile torch==2.13.0 transformers==5.23.0
new/bin/python -W ignore seen.py
