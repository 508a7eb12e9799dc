#!/bin/sh
# Left padding changes the answers of some families although mask and position ids are given.
#
# Packages: torch 2.13.0, transformers 5.23.0.
# Guess: a batch padded on the left, with its attention mask and position ids, gives every text the logits it has alone.
# Behaviour: true for Llama, Mamba, Mamba-2 and Qwen3-Next (the recurrent ones mask their input). In RecurrentGemma
#   and RWKV the padding runs through the recurrent state; in DeepSeek-V4 it is compressed
#   together with the text, for the compressors are given no mask.
# Hurt: who scores or generates in padded batches: a text's numbers depend on the longest text of its batch, so base
#   and tuned model differ by batching alone, and an ablation found in a batch may be that of padding.
# Instead: batches of equal length or of one text for these families; test any family by a text alone and padded.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   family             5 tokens of padding   12 tokens (largest distance to the text alone, SD)   same top-1
#   llama                      0.0000           0.0000                                         20 and 20 of 20
#   mamba                      0.0000           0.0000                                         20 and 20 of 20
#   mamba2                     0.0000           0.0000                                         20 and 20 of 20
#   qwen3_next                 0.0000           0.0000                                         20 and 20 of 20
#   recurrent_gemma            3.0540           3.0358                                          9 and 9 of 20
#   rwkv                       3.3996           3.0836                                         10 and 10 of 20
#   deepseek_v4                1.6949           1.3301                                         17 and 15 of 20
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import inspect
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
common = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4)
attention = dict(intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
linear = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
routed = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)
latent = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
families = {
    "llama": attention,
    "mamba": dict(state_size=8),
    "mamba2": dict(state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=4),
    "qwen3_next": attention | linear | routed | dict(head_dim=8),
    "recurrent_gemma": attention | dict(lru_width=32, attention_window_size=8, head_dim=8),
    "rwkv": dict(attention_hidden_size=32, intermediate_size=64),
    "deepseek_v4": attention | latent | dict(
        head_dim=8, n_routed_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, sliding_window=8),
}
ids = torch.randint(3, 99, (1, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def padded(model, n):
    """The text's logits behind n tokens of padding, with attention mask and, where the family takes them, position ids."""
    mask = (torch.arange(n + 20) >= n).long()[None]
    known = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    takes = inspect.signature(model.forward).parameters
    padded_ids = torch.cat([torch.zeros(1, n, dtype=torch.long), ids], 1)
    return model(input_ids=padded_ids, **{k: v for k, v in known.items() if k in takes}).logits[0, n:]


reached = set()
print("family             5 tokens of padding   12 tokens (largest distance to the text alone, SD)   same top-1")
for family, sizes in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **sizes)).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        alone = model(input_ids=ids).logits[0]
    found = [padded(model, n) for n in (5, 12)]
    distances = [float((logits - alone).abs().max() / alone.std()) for logits in found]
    same = [int((logits.argmax(-1) == alone.argmax(-1)).sum()) for logits in found]
    reached |= {family} if max(distances) > 0.5 else set()
    print(f"{family:16} {distances[0]:16.4f} {distances[1]:16.4f} {same[0]:42} and {same[1]} of 20")
expected = {"recurrent_gemma", "rwkv", "deepseek_v4"}
sys.exit(0 if reached == expected else f"the behaviour has changed: {sorted(reached)}")
PY
