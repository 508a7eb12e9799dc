import math

import polars as pl
import pytest
import torch

from mechdiff.measures import divergence
from mechdiff.rows import COLUMNS
from oracles import laws


def logits(seed: int) -> torch.Tensor:
    return torch.randn(4, 60, generator=torch.Generator().manual_seed(seed)) * 2


def test_rows_of_every_prompt_and_metric() -> None:
    base, tuned = logits(0), logits(1)
    tuned[3] = base[3]
    frame = divergence.measure(base, tuned, ["a", "b", "c", "d"], "report")
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


def test_property_18_swapping_the_models_swaps_the_directions() -> None:
    base, tuned, ids = logits(0), logits(1), ["a", "b", "c", "d"]
    there, back = divergence.measure(base, tuned, ids, "report"), divergence.measure(tuned, base, ids, "report")
    forward = there.filter(metric="kl_tuned_base_nats")["value"].to_list()
    assert back.filter(metric="kl_base_tuned_nats")["value"].to_list() == forward


def test_a_token_that_the_base_excludes_makes_d_infinite() -> None:
    base, tuned = torch.tensor([[1.0, -math.inf]]), torch.tensor([[1.0, 0.0]])
    frame = divergence.measure(base, tuned, ["a"], "select")
    value = dict(frame.select("metric", "value").rows())
    assert value["kl_tuned_base_nats"] == math.inf
    assert value["kl_base_tuned_nats"] == pytest.approx(-math.log(1 - 1 / (1 + math.e)), rel=1e-6)
    assert value["js_nats"] < math.log(2)


def test_over_text_each_position_is_held_against_the_definition() -> None:
    base, tuned = torch.randn(9, 31) * 3, torch.randn(9, 31) * 3
    tuned[6] = base[6]
    said = torch.tensor([4, 30, 0])
    found = divergence.over_text(base, tuned, said, n_bytes=7, prompt="p", split="report")
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
    found = divergence.over_text(laws, laws.clone(), torch.tensor([1, 2]), n_bytes=2, prompt="p", split="report")
    whole = dict(found.filter(pl.col("unit").is_null()).select("metric", "value").iter_rows())
    assert math.isnan(whole["first_divergence"])
    assert whole["bits_per_byte_base"] == whole["bits_per_byte_tuned"]
    nothing = divergence.over_text(laws, laws, torch.tensor([], dtype=torch.long), n_bytes=0, prompt="p", split="report")
    assert nothing.filter(pl.col("metric").str.starts_with("bits"))["value"].is_nan().all()
