#!/bin/sh
# A cache of DeepSeek-V2, DeepSeek-V3, MiniCPM3, GLM-4-MoE-lite and Youtu holds no keys and no values any more.
#
# Packages: torch 2.13.0, transformers 5.14.1 and 5.23.0.
# Guess: `cache.layers[i].keys` is `[text, head, position, d]`, the keys that attention used, and `.values` its values,
#   as in other families, and in these with 5.14.1.
# Behaviour: with 5.23.0 a cache of multi-head latent attention holds under `keys` the normed latent that keys and values are
#   made of, `[text, 1, position, kv_lora_rank]`, and under `values` the rotated part of the keys, one for all heads,
#   `[text, 1, position, qk_rope_head_dim]`. The names and the class (DynamicCache) are the same, and nothing is said.
# Hurt: who recomputes attention from cached keys, drops or merges cached positions by the size of keys and values,
#   counts heads or bytes by the cache's axes, patches a head's values there, or keeps the cache of a long prompt on disk.
# Instead: take keys and values where attention is given them (AttentionInterface); hold the cache against these once per
#   family and release; keep a prompt's ids beside its cache, and the release.
#
# Output seen:
#   torch 2.13.0, transformers 5.14.1 (4 heads, 9 positions, kv_lora_rank 16, qk_rope_head_dim 8)
#   family         keys             values           are those that attention used
#   llama          1, 2, 9, 8       1, 2, 9, 8       True
#   deepseek_v2    1, 4, 9, 16      1, 4, 9, 16      True
#   deepseek_v3    1, 4, 9, 16      1, 4, 9, 16      True
#   minicpm3       1, 4, 9, 16      1, 4, 9, 16      True
#   glm4_moe_lite  1, 4, 9, 16      1, 4, 9, 16      True
#   youtu          1, 4, 9, 16      1, 4, 9, 16      True
#   torch 2.13.0, transformers 5.23.0 (4 heads, 9 positions, kv_lora_rank 16, qk_rope_head_dim 8)
#   family         keys             values           are those that attention used
#   llama          1, 2, 9, 8       1, 2, 9, 8       True
#   deepseek_v2    1, 1, 9, 16      1, 1, 9, 8       False
#   deepseek_v3    1, 1, 9, 16      1, 1, 9, 8       False
#   minicpm3       1, 1, 9, 16      1, 1, 9, 8       False
#   glm4_moe_lite  1, 1, 9, 16      1, 1, 9, 8       False
#   youtu          1, 1, 9, 16      1, 1, 9, 8       False
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cd "$work"
cat > seen.py <<'PY'
import sys

import torch
import transformers
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

release, hold_latents = transformers.__version__, sys.argv[1] == "latents"
print(f"torch {torch.__version__.split('+')[0]}, transformers {release} (4 heads, 9 positions, kv_lora_rank 16, qk_rope_head_dim 8)")
common = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0)
latent = dict(num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16)
experts = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=2, n_group=1, topk_group=1)
families = {
    "llama": dict(num_key_value_heads=2),
    "deepseek_v2": latent | experts | dict(head_dim=8),
    "deepseek_v3": latent | experts,
    "minicpm3": latent,
    "glm4_moe_lite": latent | experts,
    "youtu": latent,
}
given = []


def noting(module, query, key, value, mask, **kwargs):
    given.append((key, value))
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register("noting", noting)
ids = torch.randint(3, 99, (1, 9), generator=torch.Generator().manual_seed(1))
wrong = []
print("family         keys             values           are those that attention used")
for family, sizes in families.items():
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **common, **sizes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="noting").float().eval()
    cache = DynamicCache()
    given.clear()
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    keys, values = cache.layers[0].keys, cache.layers[0].values
    used = torch.equal(keys, given[0][0]) and torch.equal(values, given[0][1][..., : values.shape[-1]])
    shown = [", ".join(map(str, one.shape)) for one in (keys, values)]
    print(f"{family:14} {shown[0]:16} {shown[1]:16} {used}")
    rope = config.qk_rope_head_dim if family != "llama" else 8
    expected = ((1, 1, 9, 16), (1, 1, 9, rope)) if hold_latents and family != "llama" else None
    if used != (expected is None) or (expected and (tuple(keys.shape), tuple(values.shape)) != expected):
        wrong.append(family)
sys.exit(f"the behaviour has changed with {release}: {wrong}" if wrong else 0)
PY
python3 -m venv old
old/bin/pip install --quiet --no-compile torch==2.13.0 transformers==5.14.1 "huggingface-hub<2" "tokenizers<0.23" httpx
old/bin/python -W ignore seen.py keys
rm -rf old
python3 -m venv new
new/bin/pip install --quiet --no-compile torch==2.13.0 transformers==5.23.0
new/bin/python -W ignore seen.py latents
