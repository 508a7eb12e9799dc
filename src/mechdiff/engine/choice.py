"""Which engine is right for a model? The fastest whose way of running variants its architecture allows; the self-check proves it on the weights."""

from typing import Any

import torch

from mechdiff.architectures.dataflow import without_numbers
from mechdiff.architectures.families import Family
from mechdiff.architectures.lookup import family_of
from mechdiff.architectures.network import network_of
from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture
from mechdiff.engine.replay import ENGINES, Write
from mechdiff.models.pair import wrap

LENGTH_DEPENDENT = ("longrope", "dynamic")
"""Kinds of rotary scaling whose frequencies are chosen anew in each pass, by the longest position in it."""
_LIMITS = ("window", "chunk", "local", "topk", "stride")
"""Parts of the names of config fields by which only some of the earlier positions are seen."""
_NO_LIMITS = (
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "topk_group",
    "topk_method",
    "moe_topk",
    "num_local_experts",
)
"""Fields with such names that parallel tokens follow, or that speak of experts."""


def engine_for(config: Any, longest: int = 0) -> tuple[str, str]:
    """The fastest engine that is right for a model of this transformers config and prompts of at most `longest` tokens, and why."""
    family, text = family_of(config), config.get_text_config()
    if getattr(text, "alibi", text.model_type == "bloom"):
        return "relay", "its attention adds a bias for each distance (ALiBi), which parallel tokens cannot be given"
    if family.mixers:
        return "relay", "some of its blocks keep a running state instead of keys and values, which parallel tokens would share"
    if longest > _original_context(text):
        return "relay", "its rotary frequencies depend on the longest prompt of a pass, so each prompt runs alone"
    if family.by_layer:
        return _for_proposed(config, family)
    return "replay", "it keeps plain keys and values, so variants run as parallel tokens"


_TRIED: dict[int, tuple[Family, str]] = {}


def _for_proposed(config: Any, family: Family) -> tuple[str, str]:
    """As `engine_for`, of a row that was proposed: what its blocks allow, and what a pass without weights runs through."""
    parallel = all(block.parallel for block in family.by_layer)
    limit = _limit_of_attention(config.get_text_config())
    names = ["replay", "relay", "full"] if parallel and not limit and not family.tangled else ["relay", "full"]
    if _TRIED.get(id(family), (None,))[0] is not family:
        _TRIED[id(family)] = family, next(name for name in names if name == "full" or _runs(config, family, name))
    name = _TRIED[id(family)][1]
    if name == "full":
        return name, "its row was proposed, and its blocks take more from outside than one state that variants can share"
    if name == "replay":
        return name, "its row was proposed, and each block mixes positions by one attention over keys and values of its own"
    if limit:
        return (
            name,
            f"its row was proposed, and its config's {limit} may limit what a position sees in a way that parallel tokens do not follow",
        )
    return name, "its row was proposed, and not all that mixes positions is attention over keys and values of its own"


def _runs(config: Any, family: Family, name: str) -> bool:
    """Whether an engine gets through passes of two prompts and two variants, in shapes alone."""
    net = network_of(config)
    model = wrap(net, side="base", ref="without weights", config=config)
    value = torch.zeros(2, 1, model.shape.width("resid_post"), device="meta")
    variants = [{Site(layer, "resid_post"): Write(value=value)} for layer in (0, model.shape.n_layers - 1)]
    try:
        with without_numbers(net, family.opaque):
            cleans = [capture(model, range(n), [], [0], keep_cache=name == "replay") for n in (5, 7)]
            for one in dict.fromkeys((name, "relay")):  # windows of positions run by relay whatever the engine
                ENGINES[one](model, cleans, variants)
    except Exception:  # noqa: BLE001  whatever a model's own code raises
        return False
    return True


def _limit_of_attention(config: Any) -> str | None:
    """A field of the config by which only a part of the earlier positions may be seen, in another way than by a sliding window."""
    limits = (name for name, value in config.to_dict().items() if value and any(part in name for part in _LIMITS))
    return next((name for name in limits if name not in _NO_LIMITS), None)


def _original_context(config: Any) -> float:
    """Tokens up to which the rotary frequencies are one set; infinite where they do not depend on the length."""
    stated = getattr(config, "rope_parameters", None) or {}
    nested = [one for one in stated.values() if isinstance(one, dict)] or [stated]
    contexts = [
        one.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for one in nested
        if one.get("rope_type") in LENGTH_DEPENDENT
    ]
    return min(contexts, default=float("inf"))
