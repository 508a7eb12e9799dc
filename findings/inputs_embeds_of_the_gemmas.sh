#!/bin/sh
# Rows of the embedding matrix are no input embeddings in Gemma, and in Gemma 3n nothing that is given as embeddings is.
#
# Packages: torch 2.13.0, transformers 5.23.0.
# Guess: `model(inputs_embeds=E[ids])` with the embedding matrix E is `model(input_ids=ids)`; or at least
#   `get_input_embeddings()(ids)`, the module's own answer, is.
# Behaviour: in Gemma, Gemma 2 and Gemma 3 the module multiplies by the root of the width and the matrix does not, so that E[ids] is
#   too small by that factor. In Gemma 3n even the module's answer gives other logits: the embeddings per layer need the
#   ids and are left out in silence. Gemma 4 raises an error for E[ids] and is right for the module's answer.
# Hurt: who works at the input (integrated gradients, soft prompts, noise or means in place of a token, a search for
#   tokens by gradient): attributions are those of another network, and no sum of them meets the logits.
# Instead: hook the output of the embedding module while ids are given; test with the ids' own embeddings first.
#
# Output seen:
#   torch 2.13.0, transformers 5.23.0
#   family         rows of the matrix   the module's answer   (largest distance of logits to those of the ids, SD)
#   llama                         0.0                   0.0
#   gemma                      5.2742                   0.0
#   gemma2                     3.5791                   0.0
#   gemma3_text                3.4248                   0.0
#   gemma3n_text               4.4727                1.5798
#   gemma4_text          RuntimeError                   0.0
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
common = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
              head_dim=8, pad_token_id=0)
layers = dict(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8)
per_layer = dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=99, num_kv_shared_layers=0)
families = {
    "llama": {},
    "gemma": {},
    "gemma2": layers,
    "gemma3_text": layers,
    "gemma3n_text": layers | per_layer | dict(laurel_rank=4, altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4),
    "gemma4_text": layers | per_layer | dict(global_head_dim=8),
}
ids = torch.randint(3, 99, (1, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def distance(model, embedded):
    """The largest distance of the logits to those of the ids, in their SD; None where the model refuses."""
    whole = model(input_ids=ids).logits
    try:
        found = model(inputs_embeds=embedded).logits
    except RuntimeError:
        return None
    return round(float((found - whole).abs().max() / whole.std()), 4)


seen = {}
print("family         rows of the matrix   the module's answer   (largest distance of logits to those of the ids, SD)")
for family, sizes in families.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **common, **sizes)).float().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # vectors too: some scales start at 0
    table = model.get_input_embeddings()
    rows, answer = distance(model, table.weight[ids]), distance(model, table(ids).detach())
    seen[family] = tuple("refused" if d is None else d > 0.1 for d in (rows, answer))
    print(f"{family:14} {rows if rows is not None else 'RuntimeError':>18} {answer:>21}")
expected = {"llama": (False, False), "gemma": (True, False), "gemma2": (True, False), "gemma3_text": (True, False),
            "gemma3n_text": (True, True), "gemma4_text": ("refused", False)}
sys.exit(0 if seen == expected else f"the behaviour has changed: {seen}")
PY
