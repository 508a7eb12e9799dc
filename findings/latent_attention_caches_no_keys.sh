#!/bin/sh
# The cache of DeepSeek-V2 and V3 and of MiniCPM3 holds keys and values in one release of transformers, and what they are made of in a later one.
#
# Packages: torch 2.13.0, transformers 5.14.1 and 5.23.0.
# Guess: `past_key_values.layers[i].keys` and `.values` are the keys and values of every head, as for all other decoders, whatever
#   the release.
# Behaviour: since 5.15 models with multi-head latent attention keep one row a token in the place of the keys (the
#   latent, kv_lora_rank wide, before it is projected) and the one rotated key that all heads share in the place of the values.
#   Names and class of the cache are the same as before, and nothing is said. 5.14.1 kept every head's keys and values.
# Hurt: who reads the cache for what attention saw: scores as query times key, norms of keys, patches of a head's value, quantised or
#   pruned caches. Where shapes are asked for it fails; a norm, a mean or a patch of "values" is of rotated keys, and runs.
# Instead: take keys and values from inside the attention module (a hook on `kv_b_proj`, or an attention function of one's own),
#   and ask the cache for its shape before anything else.
#
# Output seen:
#   transformers 5.14.1, torch 2.13.0: keys and values of 5 tokens, 4 heads of 24 and 12
#     deepseek_v2    (1, 4, 5, 24)   (1, 4, 5, 12)
#     deepseek_v3    (1, 4, 5, 24)   (1, 4, 5, 12)
#     minicpm3       (1, 4, 5, 24)   (1, 4, 5, 12)
#   transformers 5.23.0, torch 2.13.0: keys and values of 5 tokens, 4 heads of 24 and 12
#     deepseek_v2    (1, 1, 5, 20)   (1, 1, 5, 8)
#     deepseek_v3    (1, 1, 5, 20)   (1, 1, 5, 8)
#     minicpm3       (1, 1, 5, 20)   (1, 1, 5, 8)
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 transformers==5.23.0
"$work/venv/bin/pip" install --quiet --no-compile --no-deps --target "$work/earlier" transformers==5.14.1
cd "$work"
cat > shapes.py <<'PY'
import importlib.metadata
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
latent = dict(q_lora_rank=16, kv_lora_rank=20, qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=12)
experts = dict(n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=16, first_k_dense_replace=2)
print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}: keys and values of 5 tokens, 4 heads of 24 and 12")
found = set()
for kind in ("deepseek_v2", "deepseek_v3", "minicpm3"):
    config = AutoConfig.for_model(kind, **sizes, **latent, **(experts if kind != "minicpm3" else {}))
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config).eval()
    seen = []
    net.model.layers[0].self_attn.kv_b_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        layer = net(torch.arange(5)[None], use_cache=True).past_key_values.layers[0]
    print(f"  {kind:14} {tuple(layer.keys.shape)}   {tuple(layer.values.shape)}")
    found.add((tuple(layer.keys.shape), tuple(layer.values.shape)))
    if layer.keys.shape[1] == 1:  # what stands there is what the projection to keys and values is given
        assert torch.equal(layer.keys.flatten(), seen[0].flatten())
sys.exit(found != {eval(sys.argv[1])})
PY
PYTHONPATH="$work/earlier" "$work/venv/bin/python" -W ignore shapes.py "((1, 4, 5, 24), (1, 4, 5, 12))"
"$work/venv/bin/python" -W ignore shapes.py "((1, 1, 5, 20), (1, 1, 5, 8))"
