"""Every decoder type of the installed transformers as a tiny random network: the sizes that its config states are made small, by their names."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from mechdiff.architectures.lookup import family_of, routers_of
from mechdiff.architectures.network import auto_class, network_of, quiet
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture, forward
from mechdiff.engine.choice import engine_for
from mechdiff.engine.grafts import batches, grafted, resume, trace
from mechdiff.engine.replay import ENGINES, Write, full
from mechdiff.engine.rounding import nats_between
from mechdiff.engine.routers import ask, routed
from mechdiff.engine.selfcheck import self_check
from mechdiff.models.changes import open_changes
from mechdiff.models.modules import changes_between, parts, tensors_of
from mechdiff.models.pair import SIDES, Model, wrap
from mechdiff.models.projections import layout_of
from mechdiff.models.sources import Source
from mechdiff.validate.made import token_prompts

SMALL: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258,
}  # fmt: skip
"""What every config is made with, as far as it has the field."""
SIZES: dict[str, Any] = {
    "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_topk": 2, "moe_top_k": 2, "top_k_experts": 2, "moe_k": 2, "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1, "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "shared_intermediate_size": 16,
    "expert_ffn_hidden_size": 16, "ffn_hidden_size": 48, "first_k_dense_replace": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "qk_head_dim": 16,
    "index_head_dim": 16, "index_n_heads": 2, "index_topk": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "mamba_d_ssm": 64, "mamba_chunk_size": 16, "chunk_size": 16, "ssm_state_size": 8, "state_size": 8,
    "n_groups": 1, "n_mamba_heads": 1, "time_step_rank": 4, "mamba_dt_rank": 4, "lru_width": 32, "attention_window_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "sliding_window": 8,
    "rotary_dim": 8, "attn_module_list": None, "vocab_size_per_layer_input": 259, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "num_kv_shared_layers": 0, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "n_inner": 48, "d_model": 32, "n_heads": 4, "n_layers": 4,
    "max_seq_len": 128, "ffn_dim": 48, "word_embed_proj_dim": 32, "attention_hidden_size": 32, "context_length": 128, "seq_length": 128,
    "decoder_layers": 4, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "embedding_size": 32, "num_memory_blocks": 1, "adapter_rank": 8,
    "num_global_key_value_heads": 2, "attention_chunk_size": 64, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 48,
    "dim_model": 32, "dim_ff": 48, "dim_head": 8, "num_blocks": 4, "kv_channels": 8, "mrope_section": [2, 1, 1],
}  # fmt: skip
"""What a config's other sizes become where it states them."""

_SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_LATENT = {"num_key_value_heads": 4, "head_dim": 16}
OTHER: dict[str, dict[str, Any]] = {
    "dots3_note": _LATENT,
    "dots3_note_text": _LATENT,
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1, "head_dim": 8},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "n_mamba_heads": 1},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "qwen2_5_vl": {"rope_parameters": _SECTIONS},
    "qwen2_5_omni_thinker": {"rope_parameters": _SECTIONS},
    "zaya": {"num_experts_per_tok": 1},
    "xglm": {"pad_token_id": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"num_layers": 2},
    "deepseek_v4": {"n_routed_experts": 4},
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "jetmoe": {"kv_channels": 8, "num_key_value_heads": 4},
}
"""Of types whose sizes hang together in another way."""


MOST = 20_000_000
"""Parameters of a tiny model."""
OUT_OF_SCOPE = {
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small", "camembert", "data2vec-text",
    "electra", "ernie", "marian", "mbart", "megatron-bert", "mvp", "pegasus", "plbart", "prophetnet", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "trocr", "whisper", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
    "reformer",
}  # fmt: skip
"""Encoders and halves of encoder-decoders that have a head for the next token: nobody fine-tunes them as decoders."""


OF_IMAGES = ("pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder")
"""Encoder-decoders whose encoder reads images or documents: there is no text in, text out."""


def decoders() -> list[str]:
    """Every `model_type` that transformers makes a causal language model of, those that are out of scope left out."""
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in OUT_OF_SCOPE]


def wrappers() -> list[str]:
    """Every `model_type` of image-text models that is none of those."""
    return [kind for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if kind not in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *OF_IMAGES}]


def tiny_config(kind: str, **stated: Any) -> Any:
    """A config of this type with four blocks of width 32, and with these fields."""
    config = _tiny_config(kind)
    for name, value in stated.items():
        setattr(config, name, value)
    return config


def _tiny_config(kind: str) -> Any:
    made = CONFIG_MAPPING[kind]
    default = made()
    inner = default.get_text_config()
    sizes = _small(inner) | OTHER.get(kind, {})
    if inner is default:
        return made(**sizes)
    name = next(name for name in made.sub_configs if getattr(default, name, None) is inner)
    return made(**{name: type(inner)(**sizes).to_dict()}, **{one: _small(getattr(default, one)) for one in made.sub_configs if one != name})


def _small(config: Any) -> dict[str, Any]:
    stated = config.to_dict()
    names = {*stated, *config.attribute_map}
    found = {name: value for name, value in SMALL.items() if name in names}
    found |= {name: SIZES[name] for name in ("head_dim", "moe_intermediate_size") if name in stated}
    if stated.get("kv_lora_rank"):  # latent attention has as many keys as queries
        found["num_key_value_heads"] = 4
    found |= {name: value for name, value in SIZES.items() if stated.get(name) is not None and name not in config.attribute_map.values()}
    kinds = stated.get("layer_types") or stated.get("layers_block_type")
    if kinds:
        field = "layer_types" if stated.get("layer_types") else "layers_block_type"
        found[field] = [list(dict.fromkeys(kinds))[i % len(set(kinds))] for i in range(4)]
    return found


def mixtures(kinds: list[str]) -> list[str]:
    """Those of some types whose config speaks of experts; of which no tiny config can be made are left out."""
    found = []
    for kind in kinds:
        with suppress(Exception):
            found += [kind] if any("expert" in name or "moe" in name for name in tiny_config(kind).get_text_config().to_dict()) else []
    return found


def tiny_decoder(kind: str, seed: int = 0, **stated: Any) -> Any:
    """A random network of this type whose states and logits have spread enough for effects to be seen; with these fields of its config."""
    config = tiny_config(kind, **stated)
    if (size := sum(one.numel() for one in network_of(config).parameters())) > MOST:
        raise ValueError(f"its sizes do not shrink: {size:,} parameters")
    torch.manual_seed(seed)
    with quiet():
        net = auto_class(config).from_config(config).eval().float().requires_grad_(False)
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return net


# ---- the walk ----------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Walked:
    """What mechdiff could do with one type; `reason`: which step failed, and how."""

    kind: str
    row: str = ""
    """listed, proposed, or none."""
    engine: str = ""
    sites: tuple[str, ...] = ()
    done: list[str] = field(default_factory=list)
    """Of STEPS."""
    reason: str = ""

    @property
    def whole(self) -> bool:
        """Whether all but heads was done."""
        return set(self.done) >= {"self-check", "divergence", "weights", "grafting", "patching"}


STEPS = ("self-check", "divergence", "weights", "grafting", "patching", "heads")


def walk(kind: str, folder: Path, **stated: Any) -> Walked:
    """Every step on a tiny random pair of this type (with these fields of its config), up to the one that fails."""
    found = Walked(kind=kind)
    steps = {
        "self-check": _checked,
        "divergence": _diverges,
        "weights": _weighs,
        "grafting": _grafts,
        "patching": _patches,
        "heads": _adds_up_by_head,
    }
    step = "a tiny model of it"
    try:
        config = tiny_config(kind, **stated)
        nets = [tiny_decoder(kind, seed=seed, **stated) for seed in range(2)]
        step = "row"
        found.row = "proposed" if family_of(config).by_layer else "listed"
        pair = tuple(wrap(net, side=side, ref=kind, config=config) for net, side in zip(nets, SIDES, strict=True))
        found.sites, found.engine = tuple(pair[0].kinds()), engine_for(config)[0]
        for step, does in steps.items():
            if does(pair, folder) is not None:
                found.done.append(step)
    except Exception as error:  # noqa: BLE001  a table says of every type how far it goes
        said = str(error).strip().partition("\n")[0]
        found.reason = f"{step}: {type(error).__name__}: {said}"
        found.row = found.row or "none"
    return found


Two = tuple[Model, Model]


def _checked(pair: Two, folder: Path) -> Any:
    for model in pair:
        parts(model)
        self_check(model, token_prompts(3), engine=ENGINES[engine_for(model.config)[0]])
    return True


def _logits(model: Model) -> torch.Tensor:
    return torch.stack([forward(model, torch.tensor([ids]), use_cache=False).logits[0, -1].float() for ids in token_prompts(3)])


def _diverges(pair: Two, folder: Path) -> Any:
    nats = nats_between(*(_logits(model) for model in pair))
    assert ((nats > 1e-3) & nats.isfinite()).all(), f"KL(base || tuned) is {nats.tolist()}"
    return True


def _weighs(pair: Two, folder: Path) -> Any:
    """Every matrix that the files hold of the language model has a place in the network, and its change is the one in memory."""
    with quiet():
        for model in pair:
            model.net.save_pretrained(folder / model.side)
    sources = [Source(ref=model.side, load=str(folder / model.side)) for model in pair]
    changes = open_changes(*sources)
    known = {**changes.places, **dict(pair[0].net.named_buffers())}
    away = [name for name in changes.names if name not in known and not name.startswith(pair[0].family.unread or "-")]
    assert not away, f"{away[0]} stands in no part of the network"
    first, second = (dict(model.net.named_parameters(remove_duplicate=False)) for model in pair)
    compared = [name for name in changes.names if name in first and name in changes.places]
    assert compared, "no tensor of the files has its name in the network"
    for name in compared:
        moved, change = (second[name] - first[name]).detach(), changes.change(name).delta()
        assert torch.equal(change, moved.T if changes.base.transposed(name) else moved), (
            f"the change of {name} in the files is not the one in memory"
        )
    return True


def _grafts(pair: Two, folder: Path) -> Any:
    """All changed units grafted into the base make the tuned model, bit for bit, and the base is itself again."""
    base, tuned = pair
    before, changes = _logits(base), changes_between(base, tensors_of(tuned))
    buffers = {name: value.clone() for name, value in base.net.named_buffers()}
    with grafted(base, changes, changes.units):
        for name, value in tuned.net.named_buffers():  # tables that are no weights and that a random network draws (xLSTM, routers' biases)
            base.net.get_buffer(name).copy_(value)
        whole = _logits(base)
    for name, value in buffers.items():
        base.net.get_buffer(name).copy_(value)
    assert torch.equal(whole, _logits(tuned)), "all units grafted are not the tuned model"
    assert torch.equal(_logits(base), before), "after grafting the base is not itself"
    [batch] = batches(base, token_prompts(2))
    start = trace(base, batch)
    for layer in (-1, 0) if base.family.tangled else range(-1, base.shape.n_layers + 1):
        assert torch.equal(resume(base, batch, start, layer), start.logits), f"a pass that begins at block {layer} is not the whole one"
    return True


def _patches(pair: Two, folder: Path) -> Any:
    """The other model's states at three kinds of site, both ways, by the engine and by whole passes."""
    prompts = [token_prompts(3)[0][:5], token_prompts(3)[1]]
    kinds = [kind for kind in ("attn_out", "mlp_out", "attn_proj", "resid_post", "resid_pre") if kind in pair[0].kinds()][:3]
    assert len(kinds) == 3, f"it has the sites {', '.join(pair[0].kinds())} alone"
    engine = ENGINES[engine_for(pair[0].config)[0]]
    sites = [Site(layer, kind) for kind in kinds for layer in range(pair[0].shape.n_layers)]
    for into, other in (pair, pair[::-1]):
        states = [capture(other, ids, sites, [len(ids) - 1]).states for ids in prompts]
        cleans = [capture(into, ids, [], [0], keep_cache=engine is ENGINES["replay"]) for ids in prompts]
        variants = [{site: Write(value=torch.stack([one[site] for one in states]))} for site in sites]
        fast, slow = engine(into, cleans, variants), full(into, cleans, variants)
        nats = nats_between(slow, fast)
        assert nats.max() <= 1e-8, f"the engine strays by {float(nats.max()):.1e} nats from whole passes"
        assert nats_between(slow[:, :1], slow[:, 1:]).amax() > 1e-4, "no patch does anything"
    return True


WITH_EXPERTS: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "doge": {"is_moe": True},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
}
"""What gives experts to types whose tiny network has none."""


def routes(kind: str) -> str:
    """ "yes" where every router of a tiny network of this type gives a choice, whose top expert another network's router moves for some token; else
    the reason why none does."""
    try:
        nets = [tiny_decoder(kind, seed=seed, **WITH_EXPERTS.get(kind, {})) for seed in range(2)]
        config = nets[0].config
        base, tuned = (wrap(net, side=side, ref=kind, config=config) for net, side in zip(nets, SIDES, strict=True))
        paths = routers_of(config)
        found = routed(base, token_prompts(1, shortest=20)[0], paths)
    except Exception as error:  # noqa: BLE001  a table says of every type how far it goes
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not paths:
        return "no router"
    for layer, (asked, choice) in found.items():
        same, other = ask(base, layer, paths[layer], asked), ask(tuned, layer, paths[layer], asked)
        assert choice, f"the router of block {layer} gives no choice"
        assert same, f"the router of block {layer} gives no choice when it is asked again"
        assert other, f"the other router of block {layer} gives no choice"
        assert torch.equal(same.weights, choice.weights), f"the router of block {layer} asked again gives another choice"
        assert (choice.top != other.top).any(), f"another router of block {layer} moves no token"
    return "yes"


def _adds_up_by_head(pair: Two, folder: Path) -> Any:
    """What the heads add is what attention gives (None: no site z)."""
    base = pair[0]
    if "z" not in base.kinds():
        return None
    ids = token_prompts(3)[0]
    layout = layout_of(base.family, base.config)
    weights = {
        name: tensor.detach().T if base.family.conv1d and tensor.ndim == 2 else tensor.detach()
        for name, tensor in base.net.named_parameters()
    }
    for layer in (0, base.shape.n_layers - 1):
        states = capture(base, ids, [Site(layer, "z"), Site(layer, "attn_proj")], [len(ids) - 1]).states
        output = layout.output(layer, weights.get)
        assert not isinstance(output, str), output
        z = states[Site(layer, "z")].reshape(layout.n_heads, layout.d_head)
        added = torch.einsum("hk,hkd->hd", z, output[0]).sum(0) + output[1]
        assert torch.allclose(added, states[Site(layer, "attn_proj")][0], rtol=1e-4, atol=1e-5), (
            "the heads do not add up to attention's output"
        )
    return True
