"""The norm that reads a site, as numbers: what the module does in a real pass, in every family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechdiff.architectures.sites import Site
from mechdiff.engine.activations import capture, forward
from mechdiff.engine.norms import NORMED, missing, norm_reading, norms_in, norms_of
from mechdiff.models.pair import Model
from pico import each, moved, pico, twin, with_adapter

IDS = list(range(3, 15))
UNREAD = {"olmo2": {"resid_pre": [0, 1, 2, 3], "resid_mid": [0, 1, 2, 3], "resid_post": [0, 1, 2]}}
UNREAD["olmo3"] = UNREAD["olmo2"]
"""Layers whose state goes into a block without a norm."""


def in_a_pass(model: Model, sites: list[Site]) -> dict[Site, tuple[Tensor, Tensor]]:
    """What went into the norm that reads each site, and what came out, in one whole pass."""
    seen: dict[Site, tuple[Tensor, Tensor]] = {}

    def note(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            rows = args[0].reshape(len(IDS), -1), output.reshape(len(IDS), -1)
            seen[site] = rows[0].clone(), rows[1].clone()

        return hook

    modules = {site: norm_reading(model, site) for site in sites}
    handles = [module.register_forward_hook(note(site)) for site, module in modules.items() if module]
    forward(model, torch.tensor([IDS]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", each())
def test_numbers_do_what_the_norm_that_reads_the_site_does(name: str) -> None:
    model = twin(pico(name), moved)  # gains and biases that are not 1 and 0
    kinds = [kind for kind in NORMED if kind in model.kinds()]
    sites = [Site(layer, kind) for kind in kinds for layer in range(4)]
    states = capture(model, IDS, sites, range(len(IDS))).states
    seen = in_a_pass(model, sites)
    for kind in kinds:
        norms = norms_of(model, kind, {layer: states[Site(layer, kind)] for layer in range(4)})
        assert missing(norms, range(4)) == UNREAD.get(name, {}).get(kind, [])
        again = norms_in(norms.arrays(kind), kind)
        assert again is not None
        for layer in range(4):
            site, found = Site(layer, kind), again.apply(layer, states[Site(layer, kind)])
            if found is None:
                assert site not in seen
                continue
            read, written = seen[site]
            assert torch.equal(read, states[site]), "this norm reads this site"
            torch.testing.assert_close(found.float(), written, rtol=1e-4, atol=1e-5)


def test_nothing_norms_what_attention_and_mlp_add() -> None:
    model = pico("llama")
    assert all(norm_reading(model, Site(1, kind)) is None for kind in ("z", "attn_proj", "attn_out", "mlp_out"))


def test_half_precision_and_an_adapter_on_the_norms() -> None:
    model = pico("gemma2", dtype=torch.bfloat16)
    state = capture(model, IDS, [Site(2, "resid_mid")], range(len(IDS))).states[Site(2, "resid_mid")]
    assert missing(norms_of(model, "resid_mid", {2: state}), [2]) == []
    adapted = with_adapter("llama")
    state = capture(adapted, IDS, [Site(2, "resid_pre")], range(len(IDS))).states[Site(2, "resid_pre")]
    assert missing(norms_of(adapted, "resid_pre", {2: state}), [2]) == []


def test_numbers_that_are_not_the_modules_are_not_kept() -> None:
    """A row of the family table that names another kind of norm."""
    model = pico("gpt2")
    wrong = replace(model, family=replace(model.family, norm="rms"))
    states = capture(model, IDS, [Site(0, "resid_pre")], range(len(IDS))).states
    assert missing(norms_of(wrong, "resid_pre", {0: states[Site(0, "resid_pre")]}), [0]) == [0]
    assert missing(norms_of(model, "resid_pre", {0: states[Site(0, "resid_pre")]}), [0]) == []
