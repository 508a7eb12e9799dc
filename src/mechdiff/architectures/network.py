"""A network is built from its config alone: without weights, by the transformers class that takes text in and gives text out."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' progress bars, advice and notes to their own callers off while a model loads: ours say what a user needs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def auto_class(config: Any) -> Any:
    """The transformers class that makes a network, text in and text out, of this config; a wrapper for images where the language model is inside."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    wrapped = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if wrapped else AutoModelForCausalLM


_OWN: dict[type, Any] = {}
"""The class of a network whose own config is of a type that no class is looked up by: of the text model inside a wrapper (Emu3)."""


def network_of(config: Any) -> Any:
    """The network of a config without weights, on the meta device, in evaluation mode."""
    own = type(config).__module__.startswith("transformers_modules")  # code that the user has trusted, or the config would not be here
    with quiet(), torch.device("meta"):
        if made := _OWN.get(type(config)):
            return made._from_config(config).eval()
        net = auto_class(config).from_config(config, trust_remote_code=own).eval()
    if type(net.config) is not type(config):
        _OWN[type(net.config)] = type(net)
    return net


def names_in(net: Any) -> Callable[[str], str]:
    """A tensor's name in the network by its name in a file, as transformers renames it while loading. What it puts together of several tensors
    (experts) keeps its own name in its own place."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [one for one in get_model_conversion_mapping(net) if isinstance(one, WeightRenaming)]
    there = net.state_dict()

    def named(key: str) -> str:
        found = str(rename_source_key(key, renamings, [], net.base_model_prefix, there)[0])
        return key if found not in there and key in there else found

    return named
