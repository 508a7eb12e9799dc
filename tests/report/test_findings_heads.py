"""Findings on heads on games small enough to know by heart: which rows v is made of, bands, necessity, interactions, random edits."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import pytest

from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.heads import findings as heads_findings
from mechdiff.measures.heads import sets as heads_sets
from mechdiff.rows import rows as make
from mechdiff.statistics import summary

BREAKAGE, RECOVERY = "tuned<-base", "base<-tuned"
D = np.array([2.0, 4.0, 1.0, 3.0])
PROMPTS = ["a", "b", "c", "d"]
METRIC = {BREAKAGE: "kl_own_nats", RECOVERY: "kl_other_nats"}
PLACE = {"measure": "heads", "layer": 3, "site": "attn_proj", "arm": "contribution", "prompt": PROMPTS}
TRIO = {"head 0": 0.5, "head 1": 0.0, "head 2": 0.0, "heads 0,1": 0.5, "heads 0,2": 0.5, "heads 1,2": 0.3, "all": 0.8}
"""Head 0 has half; 1 and 2 have nothing alone and 0.3 together."""


def pair(split: str = "report") -> pl.DataFrame:
    return make(D, measure="divergence", split=split, prompt=PROMPTS, metric="kl_tuned_base_nats")


def swapped(shares: Mapping[str, float], direction: str = BREAKAGE, **named: object) -> pl.DataFrame:
    """Rows of sets that have these shares of D on every prompt."""
    nats = {unit: (share if direction == BREAKAGE else 1 - share) * D for unit, share in shares.items()}
    at = {"split": "report", "direction": direction, "metric": METRIC[direction], **PLACE, **named}
    return pl.concat([make(values, unit=unit, **at) for unit, values in nats.items()])


def game(*parts: pl.DataFrame, direction: str = BREAKAGE) -> heads_sets.Game:
    table = pl.concat([pair(), *parts])
    found = heads_sets.game(table, summary.summarise(table, NUMBERS), direction, 3)
    assert found is not None
    return found


@pytest.mark.parametrize("direction", METRIC)
def test_v_is_a_share_of_d_in_both_directions(direction: str) -> None:
    one = game(swapped(TRIO, direction), direction=direction)
    assert (one.n, one.layer) == (3, 3)
    np.testing.assert_allclose(one.whole.values, 0.8 * D)
    for heads, share in (([0], 0.5), ([1, 2], 0.3), ([2, 1], 0.3), ([0, 1, 2], 0.8), ([], 0.0)):
        np.testing.assert_allclose(one.value(heads), share * D, atol=1e-12)
    assert game(swapped({k: x for k, x in TRIO.items() if k != "heads 1,2"}, direction), direction=direction).value([1, 2]) is None


def test_a_game_is_made_of_reported_real_contributions_alone() -> None:
    """A4: random sets, other arms, the select prompts and the network's sets of the same name are not taken for it."""
    others = [
        swapped({"head 0": 9.0, "all": 9.0}, arm="routing"),
        swapped({"head 0": 9.0, "heads 0,1": 9.0}, control="random_set#0", rank=1),
        swapped({"head 0": 9.0, "all": 9.0}, control="random_vector#0"),
        swapped({"head 0": 9.0, "all": 9.0}, layer=2),
        swapped({"all": 9.0}, layer=None),
        swapped({"head 0": 9.0, "all": 9.0}, split="select"),
        pair("select"),
    ]
    one = game(swapped(TRIO), *others)
    np.testing.assert_allclose(one.value([0]), 0.5 * D)
    np.testing.assert_allclose(one.value([0, 1]), 0.5 * D)
    np.testing.assert_allclose(one.whole.values, 0.8 * D)


def test_curves_by_any_order_end_at_one_and_know_what_was_not_run() -> None:
    one = game(swapped(TRIO))
    curve = heads_sets.curve(one, [1, 2, 0])
    assert curve["k"].to_list() == [1, 2, 3]
    np.testing.assert_allclose(curve["share"], [0.0, 0.375, 1.0], atol=1e-12)
    np.testing.assert_allclose(curve["necessity"], [0.375, 0.375, 1.0])
    short = heads_sets.curve(one, [1])
    assert short["k"].to_list() == [1, 3], "an order that ends early goes on at all heads"
    unknown = game(swapped({name: TRIO[name] for name in ("head 0", "head 1", "head 2", "all")}))
    curve = heads_sets.curve(unknown, [1, 2, 0])
    assert curve["k"].to_list() == [1, 3]
    assert curve["necessity"].to_list() == [None, 1.0]
    assert heads_sets.needed(unknown) is None


def test_necessity_of_heads_is_what_is_lost_without_them() -> None:
    found = heads_sets.needed(game(swapped(TRIO)))
    assert found is not None
    np.testing.assert_allclose(found.share, [1 - 0.3 / 0.8, 0.375, 0.375])


def test_two_heads_need_each_other_two_stand_in_for_each_other() -> None:
    found = heads_sets.interactions(game(swapped(TRIO)), [0, 2, 1])
    assert found.select("i", "j").rows() == [(1, 2), (0, 2), (0, 1)]
    np.testing.assert_allclose(found["value"], [0.375, 0.0, 0.0], atol=1e-12)
    spare = game(swapped({"head 0": 0.6, "head 1": 0.6, "heads 0,1": 0.6, "head 2": 0.0, "all": 0.6}))
    (line,) = heads_sets.interactions(spare, [0, 1]).iter_rows(named=True)
    assert (line["value"], line["v_i"], line["v_j"]) == (pytest.approx(-1), pytest.approx(1), pytest.approx(1))
    nothing = game(swapped({"head 0": 0.5, "head 1": 0.5, "head 2": 0.0, "heads 0,1": 0.0, "all": 0.0}))
    assert heads_sets.interactions(nothing, [0, 1]).is_empty(), "P14: no share of nothing"


def test_heads_that_add_in_the_logits_have_no_interaction_there_and_one_of_kl() -> None:
    """Two even heads: each moves the logits half of the way, and so takes a quarter of the KL, which grows as a square."""
    pairs = {"head 0": 0.25, "head 1": 0.25, "heads 0,1": 1.0, "head 2": 0.0, "heads 0,2": 0.25, "heads 1,2": 0.25, "all": 1.0}
    ways = {"head 0": 0.5, "head 1": 0.5, "heads 0,1": 1.0, "head 2": 0.0, "heads 0,2": 0.5, "heads 1,2": 0.9, "all": 1.0}
    of_kl, added = swapped(pairs), swapped(ways, metric="fisher_nats")
    table = pl.concat([pair(), of_kl, added])
    found = heads_sets.both_interactions(table, game(of_kl, added), [0, 1, 2])
    lines = {(r["i"], r["j"]): r for r in found.iter_rows(named=True)}
    assert next(iter(lines)) == (1, 2), "the largest first, of those that add"
    assert (lines[0, 1]["value"], lines[0, 1]["kl"]) == (pytest.approx(0), pytest.approx(0.5))
    assert (lines[1, 2]["value"], lines[1, 2]["kl"]) == (pytest.approx(0.4), pytest.approx(0))
    assert (lines[0, 1]["v_i"], lines[0, 1]["v_j"]) == (pytest.approx(0.5), pytest.approx(0.5))
    without = heads_sets.both_interactions(pl.concat([pair(), of_kl]), game(of_kl), [0, 1])
    assert without["value"].to_list() == [None]
    assert without["kl"].to_list() == pytest.approx([0.5])


def test_the_band_is_of_sets_not_of_prompts() -> None:
    shares = np.linspace(0, 0.8, 41)
    drawn = [swapped({"head 0": share}, control=f"random_set#{i}", rank=1) for i, share in enumerate(shares)]
    (line,) = heads_sets.band(game(swapped(TRIO), *drawn)).iter_rows(named=True)
    assert (line["k"], line["draws"]) == (1, 41)
    assert line["mean"] == pytest.approx(0.5)
    assert (line["low"], line["high"]) == (pytest.approx(0.025), pytest.approx(0.975))
    assert heads_sets.band(game(swapped(TRIO))).is_empty()


def shapley(shares: Sequence[float], **named: object) -> pl.DataFrame:
    return swapped({f"head {i}": share for i, share in enumerate(shares)}, metric="shapley_nats", **named)


def null(edits: np.ndarray, draw: int) -> pl.DataFrame:
    """A random edit whose effects are squared lengths of sums of `edits [head, direction]`."""
    n = len(edits)
    sets = {f"head {i}": [i] for i in range(n)}
    sets |= {f"heads {','.join(str(j) for j in range(n) if j != i)}": [j for j in range(n) if j != i] for i in range(n)} | {
        "all": [*range(n)]
    }
    squares = {name: float((edits[chosen].sum(0) ** 2).sum()) for name, chosen in sets.items()}
    return swapped(squares, control=f"random_vector#{draw}")


def test_effective_number_stands_beside_that_of_random_edits() -> None:
    alike, one_alone = np.eye(3), np.diag([1.0, 0.0, 0.0])
    parts = [swapped(TRIO), shapley([0.5, 0.15, 0.15]), null(alike, 0), null(one_alone, 1)]
    one = game(*parts)
    shares = heads_sets.head_shares(pl.concat([pair(), *parts]), one)
    assert shares is not None
    np.testing.assert_allclose(shares.shapley.share, np.array([0.5, 0.15, 0.15]) / 0.8)
    assert shares.shapley.share.sum() == pytest.approx(1), "efficiency"
    assert shares.effective[0] == pytest.approx(0.64 / (0.25 + 2 * 0.0225))
    assert shares.null == (pytest.approx(1), pytest.approx(3), 2)
    assert np.isnan(shares.fisher.share).all(), "no Fisher rows, no Fisher shares"
    assert heads_sets.head_shares(pair(), one) is None


def test_players_of_the_network_are_found_in_any_order_of_their_names() -> None:
    across = {"L1.head 2+L3.head 0": 0.2, "L1.head 2": 0.1, "L1.head 2+L2.mlp+L3.head 0": 0.6, "all": 0.8}
    table = pl.concat([pair(), swapped(across, layer=None, site=None)])
    one = heads_sets.game(table, summary.summarise(table, NUMBERS), BREAKAGE, None, site=None)
    assert one is not None
    assert heads_sets.game(table, summary.summarise(table, NUMBERS), BREAKAGE, None) is None, "heads alone were not run"
    curve = heads_sets.network_curve(one, ["L3.head 0", "L1.head 2", "L2.mlp", "L0.mlp"])
    assert curve["k"].to_list() == [2, 3, 4]
    np.testing.assert_allclose(curve["share"], [0.25, 0.75, 1.0])


def test_the_strongest_layer_is_that_of_the_select_prompts_where_there_are_any() -> None:
    reported = [swapped({"all": share}, layer=layer) for layer, share in ((1, 0.2), (2, 0.7), (5, 0.9))]
    chosen = [swapped({"all": share}, layer=layer, split="select") for layer, share in ((1, 0.5), (2, 0.1), (5, 0.9))]
    assert heads_findings.strongest_layer(pl.concat(reported), [1, 2]) == (2, "report")
    assert heads_findings.strongest_layer(pl.concat(reported + chosen), [1, 2]) == (1, "select")


def test_a_record_without_select_has_no_orders() -> None:
    said = {
        "heads": {
            "greedy": {BREAKAGE: {"3": [2, 0]}},
            "single": {BREAKAGE: {"3": []}},
            "orders": {BREAKAGE: {"single": ["L1.mlp", "L3.head 2"]}},
        }
    }
    assert heads_sets.orders(said, BREAKAGE, 3) == {"greedy": [2, 0]}
    assert heads_sets.orders(said, RECOVERY, 3) == {}
    assert heads_sets.network_orders(said, BREAKAGE, only_heads=True) == {"single": ["L3.head 2"]}
    assert heads_sets.orders({}, BREAKAGE, 3) == heads_sets.network_orders({}, BREAKAGE, only_heads=False) == {}
    assert heads_findings.closer_layers({}) == []
