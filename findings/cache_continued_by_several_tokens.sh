#!/bin/sh
# Some state-space models forget their cache when more than one token follows it, and say nothing.
#
# Packages: torch 2.13.0, transformers 5.23.0.
# Guess: a text read in two pieces through the cache gives the logits of the text read at once, as it does for
#   every attention model, or raises an error.
# Behaviour: Mamba, Falcon-Mamba and Jamba start their recurrent state from zero again when two or more tokens are given with
#   a cache; only the convolution's last tokens are carried on. One token at a time is right. Mamba-2, Qwen3-Next, LFM2 and
#   Llama are right both ways.
# Hurt: who keeps the cache of a shared prompt (a system prompt, few-shot examples, the question) and scores several
#   answers behind it: the answers are scored without most of what the prompt left behind, and models of two families
#   compared this way differ by a fault of one of them.
# Instead: for these families read prompt and answer in one pass, or feed the answer token by token; test any
#   family by reading one text in two pieces.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   family         eight tokens one by one   eight at once (largest distance, SD)   same top-1, one by one and at once
#   llama                  0.0000               0.0000                                   8 of 8 and 8 of 8
#   mamba                  0.0000               2.5791                                   8 of 8 and 2 of 8
#   falcon_mamba           0.0000               2.2895                                   8 of 8 and 4 of 8
#   jamba                  0.0000               1.2308                                   8 of 8 and 5 of 8
#   mamba2                 0.0000               0.0000                                   8 of 8 and 8 of 8
#   qwen3_next             0.0000               0.0000                                   8 of 8 and 8 of 8
#   lfm2                   0.0000               0.0000                                   8 of 8 and 8 of 8
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
from transformers import AutoConfig, AutoModelForCausalLM

print(f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}")
common = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4)
attention = dict(intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
linear = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
experts = dict(num_experts=4, num_experts_per_tok=2)
routed = dict(moe_intermediate_size=16, shared_expert_intermediate_size=16)
families = {
    "llama": attention,
    "mamba": dict(state_size=8),
    "falcon_mamba": dict(state_size=8),
    "jamba": attention | experts | dict(mamba_d_state=8, attn_layer_offset=1, attn_layer_period=2, pad_token_id=0),
    "mamba2": dict(state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=4),
    "qwen3_next": attention | linear | experts | routed | dict(head_dim=8),
    "lfm2": attention | dict(layer_types=["conv", "full_attention"] * 2),
}
ids = torch.randint(3, 99, (1, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def continued(model, sizes):
    """The logits of the last eight tokens, read behind the cache of the first twelve in pieces of these sizes."""
    out, at, logits = model(input_ids=ids[:, :12], use_cache=True), 12, []
    for size in sizes:
        name = "cache_params" if "cache_params" in out else "past_key_values"
        out = model(input_ids=ids[:, at:at + size], use_cache=True, **{name: out[name]})
        logits.append(out.logits[0])
        at += size
    return torch.cat(logits)


forgetful = set()
print("family         eight tokens one by one   eight at once (largest distance, SD)   same top-1, one by one and at once")
for family, sizes in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **sizes)).float().eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0, 12:]
    pieces = continued(model, [1] * 8), continued(model, [8])
    distances = [float((piece - whole).abs().max() / whole.std()) for piece in pieces]
    same = [int((piece.argmax(-1) == whole.argmax(-1)).sum()) for piece in pieces]
    forgetful |= {family} if distances[1] > 0.5 else set()
    print(f"{family:12} {distances[0]:16.4f} {distances[1]:20.4f} {same[0]:35} of 8 and {same[1]} of 8")
sys.exit(0 if forgetful == {"mamba", "falcon_mamba", "jamba"} else f"the behaviour has changed: {sorted(forgetful)}")
PY
