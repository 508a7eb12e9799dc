"""What other libraries make of the same edits (`make oracles`; they live in an environment of their own).

Every patch writes the other model's state at the decision position: residual stream, attention output, MLP output, one head's z. mechdiff's
number is KL(clean || patched) in nats, by replay; theirs is the same KL of the logits that their own hooks end in.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mechdiff.engine.distributions import kl_nats
from mechdiff.labels import CROSSED
from mechdiff.measures.heads.formula import swap_z
from mechdiff.validate import edits, planted
from mechdiff.validate.made import byte_tokenizer
from mechdiff.validate.truths_heads import Heads

pytestmark = pytest.mark.oracles

KINDS = ("resid_post", "attn_out", "mlp_out")
WITHIN_NATS = 1e-5

Patch = Callable[[int, str, Tensor, int | None], Tensor]
"""(block, kind of site, state written at the last position `[d]` or `[d_head]`, head) -> logits `[vocab]` there."""


@pytest.fixture(scope="module")
def pair() -> planted.Planted:
    return planted.plant(edits.add_noise(0.1), n_prompts=3)


# ---- patches: each library runs one network on one prompt --------------------------------------------------------------------------


def by_transformer_lens(net: Any, ids: Sequence[int]) -> Patch:
    bridge_of = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None  # else it is loaded anew, by a name that it does not have
    bridge = bridge_of.boot_transformers("tiny", hf_model=copy.deepcopy(net), tokenizer=tokenizer, device="cpu").eval()
    names = {
        "resid_post": "blocks.{}.hook_out", "attn_out": "blocks.{}.attn.hook_out", "mlp_out": "blocks.{}.mlp.hook_out",
        "z": "blocks.{}.attn.o.hook_in",
    }  # fmt: skip

    def patch(layer: int, kind: str, state: Tensor, head: int | None) -> Tensor:
        def write(activation: Tensor, hook: object) -> Tensor:
            at = slice(None) if head is None else slice(head * len(state), (head + 1) * len(state))
            activation[:, -1].flatten(1)[:, at] = state
            return activation

        with torch.inference_mode():
            return bridge.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(names[kind].format(layer), write)])[0, -1]

    return patch


def by_nnsight(net: Any, ids: Sequence[int]) -> Patch:
    model_of = pytest.importorskip("nnsight").TransformersModel
    lens = model_of(copy.deepcopy(net), tokenizer=byte_tokenizer(), task="text-generation")

    def patch(layer: int, kind: str, state: Tensor, head: int | None) -> Tensor:
        with torch.inference_mode(), lens.trace(torch.tensor([ids])):
            block = lens.model.layers[layer]
            if kind == "resid_post":
                block.output[:, -1] = state
            elif kind == "mlp_out":
                block.mlp.output[:, -1] = state
            elif kind == "attn_out":
                block.self_attn.output[0][:, -1] = state
            else:
                block.self_attn.o_proj.input[:, -1, head * len(state) : (head + 1) * len(state)] = state
            logits = lens.lm_head.output[0, -1].save()
        return logits

    return patch


def by_pyvene(net: Any, ids: Sequence[int]) -> Patch:
    pyvene = pytest.importorskip("pyvene")
    components = {
        "resid_post": "block_output", "attn_out": "attention_output", "mlp_out": "mlp_output", "z": "head_attention_value_output"
    }  # fmt: skip

    def patch(layer: int, kind: str, state: Tensor, head: int | None) -> Tensor:
        where = pyvene.RepresentationConfig(layer, components[kind], "pos" if head is None else "h.pos", 1)
        config = pyvene.IntervenableConfig(representations=[where], intervention_types=pyvene.VanillaIntervention)
        model = pyvene.IntervenableModel(config, model=copy.deepcopy(net))
        model.disable_model_gradients()
        last = len(ids) - 1
        at = [[[last]]] if head is None else [[[[head]], [[last]]]]
        key = next(iter(model.interventions))
        with torch.no_grad():
            _, patched = model(
                {"input_ids": torch.tensor([ids])}, unit_locations={"base": at[0][0][0] if head is None else at},
                source_representations={key: state[None, None] if head is None else state[None, None, None]},
            )  # fmt: skip
        return patched.logits[0, -1]

    return patch


LIBRARIES: dict[str, Callable[[Any, Sequence[int]], Patch]] = {
    "TransformerLens": by_transformer_lens,
    "nnsight": by_nnsight,
    "pyvene": by_pyvene,
}


@pytest.mark.parametrize("direction", CROSSED)
@pytest.mark.parametrize("library", LIBRARIES)
def test_patches_of_the_other_models_states_are_theirs(pair: planted.Planted, library: str, direction: str) -> None:
    heads = Heads(pair, direction)
    other = "base" if heads.own is pair.tuned else "tuned"
    own = pair.logits(heads.own.side)
    mine = {kind: kl_nats(own[:, None], pair.patched(direction, kind)) for kind in KINDS}
    for i, ids in enumerate(pair.prompts):
        patch = LIBRARIES[library](heads.own.net, ids)
        for kind in KINDS:
            for layer in range(pair.n_layers):
                theirs = kl_nats(own[i], patch(layer, kind, pair.states(other, kind)[layer][i], None).double())
                assert float(theirs) == pytest.approx(float(mine[kind][i, layer]), abs=WITHIN_NATS), (kind, layer, ids)
    assert float(torch.stack([*mine.values()]).max()) > 100 * WITHIN_NATS, "the edits do something"


@pytest.mark.parametrize("direction", CROSSED)
@pytest.mark.parametrize("library", LIBRARIES)
def test_patches_of_one_heads_z_are_theirs(pair: planted.Planted, library: str, direction: str) -> None:
    heads = Heads(pair, direction)
    own, patches = pair.logits(heads.own.side), [LIBRARIES[library](heads.own.net, ids) for ids in pair.prompts]
    for layer in (0, 2):
        block = heads.block(layer)
        swapped = heads.logits([swap_z(block, [head]) for head in (0, 3, 7)]).double()
        mine = kl_nats(own[:, None], swapped)
        for i, patch in enumerate(patches):
            for column, head in enumerate((0, 3, 7)):
                theirs = kl_nats(own[i], patch(layer, "z", block.other[i, head], head).double())
                assert float(theirs) == pytest.approx(float(mine[i, column]), abs=WITHIN_NATS), (layer, head)
