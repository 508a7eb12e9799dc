"""Steering as part of a run: rows by the contract, planted truths through the whole pipeline, saved vectors that come back."""

import copy
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import pico
from mechdiff.api import Run
from mechdiff.architectures.sites import Site
from mechdiff.maps.vectors import load_control_vector, load_vector
from mechdiff.measures.steering.formula import ARMS
from mechdiff.measures.steering.plan import NEUTRAL
from mechdiff.prompts.sets import read_prompts
from mechdiff.study.config import RunOptions
from runs import run
from tokenizers_made import CHATML, byte_tokenizer

pytestmark = pytest.mark.ci

STEERING: dict[str, Any] = {"closer": [1, 2], "all_positions_layers": 2, "draws": 2, "side_prompts": 4, "texts": 2, "continuation": 3}


def finish(base: Path, tuned: Path, prompts: Path, out: Path, *, page: bool = True, **options: Any) -> Run:
    measures = ["divergence", {"steering": STEERING | options}]
    return run(base=str(base), tuned=str(tuned), prompts=prompts, measures=measures, out=out, page=page, options=RunOptions())


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> tuple[Run, torch.Tensor]:
    """P16: the tuned model is the base with a constant added to what leaves block 1's MLP."""
    folder = tmp_path_factory.mktemp("shifted")
    config = pico.CONFIGS["llama"]()
    config.mlp_bias = True
    base = pico.make_net(config)
    tuned = copy.deepcopy(base)
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.5
    tuned.model.layers[1].mlp.down_proj.bias.data += vector
    for name, net in (("base", base), ("tuned", tuned)):
        pico.save(net, byte_tokenizer(CHATML), folder / name)
    limits = {"max_side_kl_nats": 1e6, "max_perplexity_ratio": 1e6}
    options = {"windows": [2], "sites": ["mlp_out", "resid_post"], "strengths": [0.5, 1.5], "test_draws": 5, **limits}
    return finish(folder / "base", folder / "tuned", pair / "prompts.jsonl", folder / "run", **options), vector


def steering(finished: Run, **where: Any) -> pl.DataFrame:
    rows = finished.rows().filter(pl.col("measure") == "steering")
    return rows.filter(*(pl.col(name).eq_missing(value) for name, value in where.items()))


def test_every_direction_and_arm_has_its_rows(shifted: tuple[Run, torch.Tensor]) -> None:
    finished, _ = shifted
    rows = steering(finished).filter(pl.col("control").ne_missing("no_op"))
    assert len(rows.unique(subset=rows.columns[:-1])) == len(rows)
    arms: dict[str, set[str]] = {}
    for direction, arm in rows.select("direction", "arm").unique().rows():
        arms.setdefault(direction, set()).add(arm)
    assert arms == {direction: set(names) for direction, names in ARMS.items()}
    assert set(rows["unit"]) == {None, "all_pos", "window 2", "window 2, all_pos", "answer_16"}
    side = rows.filter(pl.col("metric").str.starts_with("side_"))
    assert side["split"].null_count() == len(side), "unrelated prompts are in no split"
    assert set(side["unit"]) == {"all_pos", "window 2, all_pos"}
    assert side["prompt"].n_unique() == 4
    assert set(rows.filter(~pl.col("metric").str.starts_with("side_"))["split"]) == {"report"}


def test_the_largest_dose_within_the_limits_is_run_beside_random_directions(shifted: tuple[Run, torch.Tensor]) -> None:
    """Here every dose is within the limits: strength 1, and every direction there is; of the first site in network order."""
    finished, _ = shifted
    drawn = steering(finished, unit="all_pos", metric="kl_other_nats").filter(pl.col("control").is_not_null())
    assert drawn.select("direction", "layer", "site", "arm", "rank", "strength").unique().sort("direction").rows() == [
        ("base<-base", 1, "mlp_out", "add", 1, None),
        ("tuned<-tuned", 1, "mlp_out", "ablate", 1, None),
    ]
    assert drawn["control"].n_unique() == 2 * 5
    assert set(drawn["split"]) == {"report"}
    sides = steering(finished).filter(pl.col("metric").str.starts_with("side_"))
    assert sides["control"].null_count() == len(sides), "random directions are compared with effects alone"


def test_a_planted_shift_is_the_tuned_model_everywhere(shifted: tuple[Run, torch.Tensor]) -> None:
    finished, vector = shifted
    everywhere = steering(finished, arm="add", layer=1, site="mlp_out", unit="all_pos", strength=None, control=None, metric="kl_other_nats")
    assert everywhere["value"].max() < 1e-8  # type: ignore[operator]
    said = finished.manifest()["steering"]
    assert said["sites"]["L1.mlp_out"]["rank"] == 1
    assert said["sites"]["L1.mlp_out"]["split_half_cosine"] == pytest.approx(1)
    found = load_vector(finished.path / "steering/L1.mlp_out.safetensors")
    assert found[0] == Site(1, "mlp_out")
    torch.testing.assert_close(found[1], vector, atol=1e-5, rtol=1e-4)
    assert found[2]["tuned"].endswith("tuned")
    (control,) = load_control_vector(finished.path / "steering/L1.resid_post.gguf").items()
    torch.testing.assert_close(control[1], vector, atol=1e-5, rtol=1e-4)
    assert "steering/L1.mlp_out.gguf" not in said["files"]
    assert all((finished.path / name).is_file() for name in said["files"])


def test_texts_are_those_of_the_models(shifted: tuple[Run, torch.Tensor]) -> None:
    """At the site and every position the steered base is the tuned model, so it says the same."""
    finished, _ = shifted
    texts = finished.manifest()["steering"]["texts"]
    assert len(texts) == 2
    for one in texts:
        assert one["site"] == "L1.mlp_out"
        assert one["steered"] == one["tuned"]


def test_one_model_twice_is_said_to_have_nothing_to_steer_with(pair: Path, tmp_path: Path) -> None:
    finished = finish(pair / "base", pair / "base", pair / "prompts.jsonl", tmp_path / "run")
    sites = finished.manifest()["steering"]["sites"]
    assert all(one["rank"] == 0 and "nothing to steer with" in one["empty"] for one in sites.values())
    rows = steering(finished).filter(pl.col("control").ne_missing("no_op"))
    assert set(rows["rank"]) == {0}
    assert rows.filter(pl.col("metric").str.contains("kl_"))["value"].max() < 1e-10  # type: ignore[operator]
    assert finished.manifest()["steering"]["files"] == []


def test_contrast_and_own_neutral_prompts(pair: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"mine-{i}", "text": f"Tell me about river {i}"}) for i in range(5)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    mine = str(tmp_path / "mine.jsonl")
    plain = finish(pair / "base", pair / "tuned", pair / "prompts.jsonl", tmp_path / "plain", page=False, neutral=mine)
    contrast = finish(pair / "base", pair / "tuned", pair / "prompts.jsonl", tmp_path / "contrast", neutral=mine, contrast=True)
    names = set(steering(contrast, metric="side_kl_nats")["prompt"])
    assert len(names) == 4
    assert all(name.startswith("mine-") for name in names)
    sizes = [one.manifest()["steering"]["sites"]["L1.resid_post"]["relative_size"] for one in (plain, contrast)]
    assert 0 < sizes[1] < sizes[0], "most of this change is the same on unrelated prompts"
    without = finish(pair / "base", pair / "tuned", pair / "prompts.jsonl", tmp_path / "without", page=False, side_prompts=0, texts=0)
    assert steering(without, metric="side_kl_nats").is_empty()


def test_the_neutral_prompts_that_come_with_mechdiff() -> None:
    prompts = read_prompts(NEUTRAL)
    texts = [prompt.text for prompt in prompts]
    assert len(prompts) >= 200
    assert len({text.lower() for text in texts}) == len(texts)
    words = " ".join(texts).lower()
    assert not any(word in words for word in ("please", "thank", "kazakh", "plus", "percent", "how many"))
    own = {prompt.text for path in (NEUTRAL.parent / "prompts").glob("*.jsonl") for prompt in read_prompts(path)}
    assert not own & set(texts), "none is a demo's prompt"
