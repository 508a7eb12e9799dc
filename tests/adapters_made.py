"""Every adapter kind of peft that can be made tiny, on a pico Llama: its config, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, get_peft_model

from mechdiff.architectures.network import quiet
from mechdiff.validate.made import save
from pico import pico
from tokenizers_made import CHATML, byte_tokenizer

ON = {"target_modules": ["q_proj", "o_proj"]}
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, **ON}

KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(**LORA),
    "rslora": lambda: LoraConfig(**LORA, use_rslora=True),
    "dora": lambda: LoraConfig(**LORA, use_dora=True),
    "eva": lambda: LoraConfig(**LORA, init_lora_weights="eva"),
    "orthogonal": lambda: LoraConfig(**LORA, init_lora_weights="orthogonal"),
    "mica": lambda: LoraConfig(**LORA, init_lora_weights="mica"),
    "lora on embedding and head": lambda: LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"]),
    "lora with saved modules": lambda: LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "lora with tokens": lambda: LoraConfig(**LORA, trainable_token_indices=[97, 98, 99, 101]),
    "lora on a parameter": lambda: LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.gate_proj.weight"]),
    "lora biases": lambda: LoraConfig(**LORA, lora_bias=True),
    "velora": lambda: LoraConfig(**LORA, velora_config=peft.VeloraConfig()),
    "bd-lora": lambda: LoraConfig(
        **LORA, use_bdlora=peft.BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj"], nblocks=2)
    ),
    "monteclora": lambda: LoraConfig(**LORA, monteclora_config=peft.MontecloraConfig()),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[97, 98, 99, 101], target_modules=["embed_tokens"]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10, **ON),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": lambda: peft.VeraConfig(r=4, **ON),
    "pvera": lambda: peft.PveraConfig(r=4, **ON),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=4, **ON),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=4, **ON),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, **ON),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, **ON),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"]),
    "hra": lambda: peft.HRAConfig(r=2, **ON),
    "miss": lambda: peft.MissConfig(r=2, **ON),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20, scaling=100.0, **ON),
    "shira": lambda: peft.ShiraConfig(r=2, **ON),
    "c3a": lambda: peft.C3AConfig(block_size=8, **ON),
    "randlora": lambda: peft.RandLoraConfig(r=2, **ON),
    "hira": lambda: peft.HiraConfig(r=2, **ON),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=20, **ON),
    "delora": lambda: peft.DeloraConfig(r=2, **ON),
    "gralora": lambda: peft.GraloraConfig(r=4, gralora_k=2, **ON),
    "glora": lambda: peft.GloraConfig(r=2, **ON),
    "vblora": lambda: peft.VBLoRAConfig(r=2, num_vectors=8, vector_length=8, topk=2, **ON),
    "unilora": lambda: peft.UniLoraConfig(r=2, theta_d_length=16, **ON),
    "road": lambda: peft.RoadConfig(group_size=8, **ON),
    "tinylora": lambda: peft.TinyLoraConfig(r=2, u=4, **ON),
    "psoft": lambda: peft.PsoftConfig(r=4, **ON),
    "peanut": lambda: peft.PeanutConfig(r=2, **ON),
    "deft": lambda: peft.DeftConfig(r=2, **ON),
    "supertuning": lambda: peft.SupertuningConfig(**ON),
    "beft": lambda: peft.BeftConfig(target_modules=["q_proj"]),
    "lily": lambda: peft.LilyConfig(r=2, **ON),
    "frod": lambda: peft.FrodConfig(**ON),
    "adamss": lambda: peft.AdamssConfig(r=8, num_subspaces=2, subspace_rank=1, **ON),
    "osf": lambda: peft.OSFConfig(effective_rank=2, **ON),
    "shadow": lambda: peft.ShadowConfig(r=2, **ON),
}
"""Each leaves the base alone, as far as peft says; what is known not to is in REWRITING."""

REWRITING: dict[str, Callable[[], Any]] = {
    "pissa": lambda: LoraConfig(**LORA, init_lora_weights="pissa"),
    "pissa by a fast SVD": lambda: LoraConfig(**LORA, init_lora_weights="pissa_niter_2"),
    "olora": lambda: LoraConfig(**LORA, init_lora_weights="olora"),
    "kasa": lambda: LoraConfig(**LORA, kasa_config=peft.KasaConfig()),
    "replicated blocks": lambda: LoraConfig(**LORA, layer_replication=[[0, 3], [1, 4]]),
}


def make_pair(folder: Path, config: Any, name: str = "llama") -> Any:
    """Saves `base` and `adapter`, its own tensors random, into a folder; the peft model that was saved."""
    base = pico(name).net
    save(base, byte_tokenizer(CHATML), folder / "base")
    torch.manual_seed(7)
    with quiet():
        adapted: Any = get_peft_model(base, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return adapted.eval()
