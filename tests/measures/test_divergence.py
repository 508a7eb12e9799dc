import math

import polars as pl
import pytest
import torch

from mechdiff.measures.divergence import formula as divergence_formula
from mechdiff.prompts.matching import Vocabulary
from mechdiff.prompts.vocabularies import Tokens, shared_tokens
from mechdiff.rows import COLUMNS
from oracles import laws


def logits(seed: int) -> torch.Tensor:
    return torch.randn(4, 60, generator=torch.Generator().manual_seed(seed)) * 2


def test_rows_of_every_prompt_and_metric() -> None:
    base, tuned = logits(0), logits(1)
    tuned[3] = base[3]
    frame = divergence_formula.measure(base, tuned, ["a", "b", "c", "d"], "report")
    assert frame.columns == COLUMNS
    assert frame.select("measure", "split").unique().rows() == [("divergence", "report")]
    assert frame.select(COLUMNS[:-1]).is_unique().all()
    value = {(metric, prompt): v for metric, prompt, v in frame.select("metric", "prompt", "value").rows()}
    assert len(value) == len(frame) == 16
    for i, prompt in enumerate("abc"):
        assert value["kl_tuned_base_nats", prompt] == pytest.approx(
            laws.kl_nats(tuned[i], base[i]), rel=1e-5
        )  # D: the tuned law is matched
        assert value["kl_base_tuned_nats", prompt] == pytest.approx(laws.kl_nats(base[i], tuned[i]), rel=1e-5)
        assert value["js_nats", prompt] == pytest.approx(laws.js_nats(base[i], tuned[i]), rel=1e-5)
        assert value["top1_same", prompt] == float(base[i].argmax() == tuned[i].argmax())
    assert [value[metric, "d"] for metric in ("kl_tuned_base_nats", "kl_base_tuned_nats", "js_nats", "top1_same")] == [0, 0, 0, 1]


def test_a_token_that_the_base_excludes_makes_d_infinite() -> None:
    base, tuned = torch.tensor([[1.0, -math.inf]]), torch.tensor([[1.0, 0.0]])
    frame = divergence_formula.measure(base, tuned, ["a"], "select")
    value = dict(frame.select("metric", "value").rows())
    assert value["kl_tuned_base_nats"] == math.inf
    assert value["kl_base_tuned_nats"] == pytest.approx(-math.log(1 - 1 / (1 + math.e)), rel=1e-6)
    assert value["js_nats"] < math.log(2)


def test_over_text_each_position_is_held_against_the_definition() -> None:
    base, tuned = torch.randn(9, 31) * 3, torch.randn(9, 31) * 3
    tuned[6] = base[6]
    said = torch.tensor([4, 30, 0])
    bits = {side: divergence_formula.bits(logits[6:], said) / 7 for side, logits in (("base", base), ("tuned", tuned))}
    found = divergence_formula.over_text(base, tuned, decision=6, bits_per_byte=bits, columns={"prompt": "p", "split": "report"})
    log_b, log_t = base.double().log_softmax(-1), tuned.double().log_softmax(-1)
    by_metric = {
        metric: part["value"].to_torch()
        for (metric,), part in found.filter(pl.col("unit").is_not_null()).group_by("metric", maintain_order=True)
    }
    torch.testing.assert_close(by_metric["kl_tuned_base_nats"], (log_t.exp() * (log_t - log_b)).sum(-1), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(by_metric["kl_base_tuned_nats"], (log_b.exp() * (log_b - log_t)).sum(-1), rtol=1e-5, atol=1e-9)
    mean = torch.logaddexp(log_b, log_t) - math.log(2)
    js = ((log_b.exp() * (log_b - mean)).sum(-1) + (log_t.exp() * (log_t - mean)).sum(-1)) / 2
    torch.testing.assert_close(by_metric["js_nats"], js, rtol=1e-5, atol=1e-9)
    assert by_metric["top1_same"].tolist() == (base.argmax(-1) == tuned.argmax(-1)).double().tolist()
    assert found.filter(pl.col("unit") == "token 6", pl.col("metric") == "js_nats")["value"].to_list() == [0.0]
    whole = dict(found.filter(pl.col("unit").is_null()).select("metric", "value").iter_rows())
    apart = [i for i in range(6, 9) if base[i].argmax() != tuned[i].argmax()]
    assert whole["first_divergence"] == apart[0]
    expected = -sum(float(log_t[6 + i, token]) for i, token in enumerate(said.tolist())) / math.log(2) / 7
    assert abs(whole["bits_per_byte_tuned"] - expected) < 1e-9


def test_over_text_models_that_never_part_have_no_first_divergence() -> None:
    laws = torch.randn(5, 8)
    found = divergence_formula.over_text(laws, laws.clone(), decision=3, bits_per_byte={}, columns={"prompt": "p", "split": "report"})
    whole = dict(found.filter(pl.col("unit").is_null()).select("metric", "value").iter_rows())
    assert math.isnan(whole["first_divergence"])
    nothing = divergence_formula.over_text(laws, laws, decision=4, bits_per_byte={}, columns={"prompt": "p", "split": "report"})
    assert nothing.filter(pl.col("metric").str.starts_with("bits"))["value"].is_nan().all()


# ---- two vocabularies --------------------------------------------------------------------------------------------------------------


def listed(base: tuple, tuned: tuple) -> Tokens:
    return shared_tokens(*(Vocabulary(pieces=pieces, kind="plain", byte_tokens=frozenset()) for pieces in (base, tuned)))


def test_p6_new_tokens_take_mass_and_change_nothing_else() -> None:
    """P6: the tuned model has 32 more tokens and the base's logits elsewhere."""
    pieces = tuple(bytes([i]) for i in range(60))
    tokens = listed(pieces, (*pieces, *(bytes([i, 0]) for i in range(32))))
    base, new = logits(0), torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    placed = {"base": tokens.place(base, "base"), "tuned": tokens.place(torch.cat([base, new], 1), "tuned")}
    frame = divergence_formula.measure(placed["base"], placed["tuned"], ["a", "b", "c", "d"], "report", tokens)
    value = {metric: part["value"].to_torch() for (metric,), part in frame.group_by("metric", maintain_order=True)}
    assert value["kl_shared_nats"].max() <= 1e-12
    m = torch.cat([base, new], 1).double().softmax(-1)[:, 60:].sum(-1)
    torch.testing.assert_close(value["mass_outside"], m, rtol=1e-12, atol=0)
    torch.testing.assert_close(value["kl_base_tuned_nats"], -torch.log1p(-m), rtol=0, atol=1e-9)
    identity = value["kl_shared_base_tuned_nats"] - torch.log1p(-value["mass_outside"])
    torch.testing.assert_close(value["kl_base_tuned_nats"], identity, rtol=0, atol=1e-9)
    assert value["kl_tuned_base_nats"].isinf().all()
    assert "mass_outside_base" not in value


def test_the_identity_of_shared_tokens_and_mass_outside_holds_where_both_moved() -> None:
    pieces = tuple(bytes([i]) for i in range(60))
    tokens = listed(pieces, (*reversed(pieces), b"new", b"newer"))
    base, tuned = tokens.place(logits(0), "base"), tokens.place(torch.cat([logits(1), logits(2)[:, :2]], 1), "tuned")
    found = {**divergence_formula.divergences(base, tuned), **divergence_formula.across_vocabularies(base, tuned, tokens)}
    identity = found["kl_shared_base_tuned_nats"] - torch.log1p(-found["mass_outside"])
    torch.testing.assert_close(found["kl_base_tuned_nats"], identity, rtol=1e-6, atol=1e-7)
    assert (found["kl_shared_nats"] > 0.1).all()
    torch.testing.assert_close(divergence_formula.total_effect(base, tuned, tokens), found["kl_shared_nats"])


def test_p7_permuted_ids_are_no_difference() -> None:
    """P7: the rows of the unembedding are permuted, and the tokenizer with them."""
    pieces = tuple(bytes([i]) for i in range(60))
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    tokens = listed(pieces, tuple(pieces[i] for i in order))
    assert tokens.relation == "permuted"
    base = tokens.place(logits(0), "base")
    tuned = tokens.place(logits(0)[:, order], "tuned")
    frame = divergence_formula.measure(base, tuned, ["a", "b", "c", "d"], "report", tokens)
    assert frame.filter(pl.col("metric").str.ends_with("_nats"))["value"].to_list() == [0.0] * 20
    by_id = divergence_formula.divergences(logits(0), logits(0)[:, order])["kl_tuned_base_nats"]
    assert by_id.min() > 1, "what a comparison by id would have said"


def test_p7b_a_merged_token_is_no_change_of_the_bytes() -> None:
    """P7b: bytes a and b in equal parts; one vocabulary also has ab, for half of the a that b follows."""
    tokens = listed((b"a", b"b"), (b"a", b"b", b"ab"))
    base = tokens.place(torch.tensor([[0.5, 0.5]]).double().log(), "base")
    tuned = tokens.place(torch.tensor([[0.25, 0.5, 0.25]]).double().log(), "tuned")
    found = divergence_formula.across_vocabularies(base, tuned, tokens)
    assert found["kl_shared_base_tuned_nats"].item() == pytest.approx(0.5 * math.log(1.125), abs=1e-9)
    assert divergence_formula.next_byte_nats(base, tuned, tokens.first_bytes).item() <= 1e-12


def test_the_next_byte_against_the_definition() -> None:
    tokens = listed((b"ab", b"b", "<end>", b"ac"), (b"ab", b"b", "<end>", b"ac"))
    base, tuned = torch.tensor([[1.0, 2, 0, 3]]), torch.tensor([[0.0, 1, 1, 2]])
    p, q = tuned[0].double().softmax(-1), base[0].double().softmax(-1)
    groups = [[0, 3], [1], [2]]
    expected = sum(float(p[g].sum() * (p[g].sum() / q[g].sum()).log()) for g in groups)
    assert divergence_formula.next_byte_nats(base, tuned, tokens.first_bytes).item() == pytest.approx(expected, abs=1e-12)
