import math

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
