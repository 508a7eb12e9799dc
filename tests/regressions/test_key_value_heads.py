"""A user's `verify` recomputed another set of heads than the run had swapped: in Falcon with one key-value head, the config's usual field is absent
and was read as one a head. The number comes from one place, and is that of the weights."""

from typing import Any

import pytest
from transformers import BloomConfig, FalconConfig, GPT2Config, OPTConfig

from mechdiff.architectures.lookup import family_of, shape_of
from mechdiff.models.projections import layout_of
from pico import CONFIGS, SIZES, WITHOUT_HEADS, each, make_net

FALCONS: dict[str, dict[str, Any]] = {
    "one for all heads": {"multi_query": True},
    "one a head": {"multi_query": False},
    "groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "groups, whatever multi_query says": {"new_decoder_architecture": True, "num_kv_heads": 2, "multi_query": True},
    "a field that the old decoder does not read": {"multi_query": True, "num_kv_heads": 4},
}


def falcon(**fields: Any) -> FalconConfig:
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    return FalconConfig(**sizes | {"num_hidden_layers": 1}, parallel_attn=True, **fields)


@pytest.mark.parametrize("kind", FALCONS)
def test_falcons_key_value_heads_are_those_of_its_fused_matrix(kind: str) -> None:
    config = falcon(**FALCONS[kind])
    rows = make_net(config).transformer.h[0].self_attention.query_key_value.weight.shape[0]
    shape = shape_of(config)
    assert (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head == rows
    assert layout_of(family_of(config, "falcon"), config).n_groups == shape.n_kv_heads


@pytest.mark.parametrize("name", each(name for name in CONFIGS if name not in WITHOUT_HEADS))
def test_every_familys_heads_are_those_of_its_weights(name: str) -> None:
    config = CONFIGS[name]()
    net, family = make_net(config), family_of(config, name)
    layout, shape = layout_of(family, config), shape_of(config)
    named = dict(net.named_parameters())

    def read(tensor: str) -> Any:
        found = named.get(tensor)
        return found.T if found is not None and family.conv1d and found.ndim == 2 else found

    cut = layout.cut(0, read)
    assert not isinstance(cut, str), cut
    assert (len(cut.query), len(cut.key), len(cut.value)) == (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
    assert layout.n_groups == shape.n_kv_heads


def test_recompute_takes_the_heads_of_a_group_as_the_run_does() -> None:
    """`verify` of `group 0` in a Falcon with one key-value head: all heads, not the first."""
    from types import SimpleNamespace

    from mechdiff.measures.heads.verify import players

    config = falcon(multi_query=True)
    run: Any = SimpleNamespace(nets={"base": SimpleNamespace(shape=shape_of(config))})
    row = {"unit": "group 0", "layer": 2, "site": "z"}
    assert players(run, row) == [(2, head) for head in range(4)]
    groups: Any = SimpleNamespace(nets={"base": SimpleNamespace(shape=shape_of(falcon(**FALCONS["groups"])))})
    assert players(groups, {**row, "unit": "group 1"}) == [(2, 2), (2, 3)]


def test_families_whose_config_says_heads_otherwise() -> None:
    for config in (
        GPT2Config(n_head=4, n_embd=32),
        BloomConfig(n_head=4, hidden_size=32),
        OPTConfig(num_attention_heads=4, hidden_size=32),
    ):
        assert (shape_of(config).n_heads, shape_of(config).n_kv_heads, shape_of(config).d_head) == (4, 4, 8)
