"""Interpolation is the two models at its ends, the naive mixture of their tensors in between, and says of planted numbers what they are."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

import adapters_made
import runs
from every_measure import made
from mechdiff.architectures.network import quiet
from mechdiff.comparison.comparable import Loaded
from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.grafts import grafted, scaled, towards
from mechdiff.engine.outcome import CleanLogits
from mechdiff.errors import ModelError, StudyError
from mechdiff.measures.catalogue import EXPERIMENTS, load_study, make_study
from mechdiff.measures.interpolation import findings, formula, words
from mechdiff.measures.interpolation.compare import axis
from mechdiff.measures.interpolation.formula import Label, of_logits, of_weights, repeated
from mechdiff.measures.interpolation.page import interpolation
from mechdiff.measures.interpolation.plan import FORMS, LOGITS, OF_TUNED, REPEATED, STATES, WEIGHTS, InterpolationOptions, holds
from mechdiff.models.modules import ChangedUnits, Unit, changes_between, changes_of_adapter, tensors_of
from mechdiff.models.modules import parts as parts_of
from mechdiff.models.pair import Model, wrap
from mechdiff.report import parts
from mechdiff.report.parts import Drawn, Run
from mechdiff.rows import empty, rows, where
from mechdiff.store.tables import read_manifest, read_rows
from mechdiff.study.config import RunOptions
from mechdiff.study.prepare import prepare
from mechdiff.validate import edits
from oracles import laws
from oracles.merged import logits as naive
from pico import each, moved, pico, prompts, twin

IDS = prompts(5, seed=2, shortest=4, longest=20)
BEYOND = (-0.5, 0.5, 2.0)


def mixed(base: nn.Module, tuned: nn.Module, strength: float, names: set[str] | None = None) -> nn.Module:
    """A network of its own with every parameter mixed in float64, or those of these names."""
    net = copy.deepcopy(base)
    with torch.no_grad():
        for (name, own), other in zip(net.named_parameters(), tuned.parameters(), strict=True):
            if names is not None and name not in names:
                continue
            own.copy_(own.double() + strength * (other.double() - own.double()))
    return net


def way(model: Model, tuned: Model, strengths: tuple[float, ...]) -> dict[float, torch.Tensor]:
    return dict(of_weights(model, changes_between(model, tensors_of(tuned)), IDS, strengths))


# ---- weights -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", each(["llama", "gpt2", "gemma2", "qwen3_moe"]))
def test_the_ends_are_the_two_models_to_the_bit_and_what_was_there_comes_back(family: str) -> None:
    base = pico(family)
    tuned = twin(base, moved)
    changes = changes_between(base, tensors_of(tuned))
    before = {name: parameter.detach().clone() for name, parameter in base.net.named_parameters()}
    for strength, network in ((0.0, base), (1.0, tuned)):
        with scaled(base, changes, strength):
            found = naive(base.net, IDS)
        assert torch.equal(found, naive(network.net, IDS))
    for strength in BEYOND:
        with scaled(base, changes, strength):
            pass
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.net.named_parameters())


@pytest.mark.parametrize("family", each(["llama", "gpt2", "gemma2", "qwen3_moe"]))
def test_in_between_and_beyond_the_network_is_the_naive_mixture(family: str) -> None:
    base = pico(family)
    tuned = twin(base, moved)
    for strength, logits in way(base, tuned, BEYOND).items():
        expected = naive(mixed(base.net, tuned.net, strength), IDS)
        assert kl_nats(expected, logits).max() < 1e-9
        assert kl_nats(naive(base.net, IDS), logits).max() > 1e-4, "something was planted"


def test_a_walk_starts_at_the_lowest_block_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico("llama")
    tuned = twin(base, lambda net: edits.edit_mlp(net, 2))
    started: list[int] = []
    monkeypatch.setattr(formula, "resume", lambda model, batch, start, layer: started.append(layer) or resume(model, batch, start, layer))
    for strength, logits in way(base, tuned, BEYOND).items():
        torch.testing.assert_close(logits, naive(mixed(base.net, tuned.net, strength), IDS), rtol=0, atol=2e-5)
    assert set(started) == {2}


resume = formula.resume

MOVED_ALONE = ("L1.mlp", "L1.attn+L2.mlp", "L2", "mlp", "embed")


def some(changes: ChangedUnits, group: str) -> list[Unit]:
    return [unit for unit in changes.units if holds(group, unit.layer, unit.kind)]


@pytest.mark.parametrize("family", each(["llama", "gpt2", "qwen3_moe"]))
@pytest.mark.parametrize("group", MOVED_ALONE)
def test_of_some_modules_alone_the_ends_are_the_base_and_the_graft_to_the_bit(family: str, group: str) -> None:
    base = pico(family)
    tuned = twin(base, moved)
    changes = changes_between(base, tensors_of(tuned))
    units = some(changes, group)
    assert 0 < len(units) < len(changes.units)
    with scaled(base, changes, 0.0, units):
        assert torch.equal(naive(base.net, IDS), naive(pico(family).net, IDS))
    with grafted(base, changes, units):
        graft = naive(base.net, IDS)
    with scaled(base, changes, 1.0, units):
        assert torch.equal(naive(base.net, IDS), graft)
    assert not torch.equal(graft, naive(base.net, IDS))
    names = {name for name, unit in parts_of(base).items() if unit in units}
    for strength, logits in of_weights(base, changes, IDS, BEYOND, units):
        expected = naive(mixed(base.net, tuned.net, strength, names), IDS)
        assert kl_nats(expected, logits).max() < 1e-9


def test_a_planted_change_of_one_module_is_all_of_the_way_there_and_none_elsewhere(tmp_path: Path) -> None:
    """Rank 2 on block 1's MLP alone: its groups are the whole way, to the bit, and those in which nothing changed stay the base."""
    folder = made(tmp_path)
    base = folder.parent / "base"
    net = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        edits.edit_mlp(net, 1)
    net.save_pretrained(folder.parent / "tuned")
    study = yaml.safe_load(folder.read_text())
    asked = {"strengths": [0.5, 2], "side_prompts": 2, "answers": 0, "modules": ["L1.mlp", "mlp", "L0", "attn"], "forms": [WEIGHTS]}
    folder.write_text(yaml.safe_dump(study | {"measures": [{"divergence": {"over_text": False}}, {"interpolation": asked}]}))
    found, _ = runs.execute(load_study(folder)[0], tmp_path / "run")
    key = ["split", "strength", "prompt", "metric"]
    all_of_it = where(found, measure="interpolation", unit=None).sort(key)["value"].to_list()
    for group in ("L1.mlp", "mlp"):
        assert where(found, measure="interpolation", unit=group).sort(key)["value"].to_list() == all_of_it
    for group in ("L0", "attn"):
        nothing = where(found, measure="interpolation", unit=group, metric="kl_own_nats")
        assert len(nothing) == len(where(found, measure="interpolation", unit=None, metric="kl_own_nats")) > 0
        assert nothing["value"].abs().max() < 1e-12  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["L1.mpl"], "given 'L1.mpl', expected modules such as L8.mlp"),
        (["L1.mlp+"], "given '', expected modules such as"),
        (["L9"], "interpolation.modules: given L9; the model has 3 blocks, L0 to L2"),
    ],
)
def test_modules_that_are_none_are_refused(given: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=said):
        planned(tmp_path, [{"interpolation": {"modules": given}}])


def test_a_tied_unembedding_is_said_where_embed_or_head_is_moved_alone(tmp_path: Path) -> None:
    folder = made(tmp_path)
    for side in ("base", "tuned"):
        net = LlamaForCausalLM.from_pretrained(folder.parent / side)
        net.config.tie_word_embeddings = True
        net.tie_weights()
        net.save_pretrained(folder.parent / side)
    study = yaml.safe_load(folder.read_text()) | {"measures": [{"interpolation": {"modules": ["head", "embed"], "side_prompts": 0}}]}
    folder.write_text(yaml.safe_dump(study))
    plan = prepare(load_study(folder)[0], RunOptions(device="cpu"), EXPERIMENTS).plan
    why = {one["what"]: one["why"] for one in plan.skipped}["interpolation of head"]
    assert "the unembedding is the embedding, one tied tensor, and moves with embed" in why
    assert "interpolation of embed" not in {one["what"] for one in plan.skipped}
    run = run_of(planted(squares), tied=True)
    assert words.named(run, "embed") == "embed (the unembedding moves with it: one tied tensor)"
    assert words.named(run, "L1+head") == "L1+head (head is the embedding here and stays: one tied tensor)"
    assert words.named(run, "L1") == "L1"
    assert words.named(run_of(planted(squares)), "embed") == "embed"


def test_groups_of_modules_have_one_name() -> None:
    assert InterpolationOptions(modules=("mlp", "L10.mlp+L2.attn+L2.attn", "L2.attn+L10.mlp")).modules == ("L2.attn+L10.mlp", "mlp")
    assert [holds("L1+mlp", *at) for at in ((1, "attn"), (11, "attn"), (11, "mlp"), (None, "head"))] == [True, False, True, False]


def test_sentences_on_modules_say_what_was_planted() -> None:
    """A module with a fifth of the way alone: D left 3 (1 - a/5)^2, which at 2 is less than at 1."""
    size = np.linspace(0.5, 1.5, 20)
    alone = [
        rows(size * 3 * (1 - a / 5) ** 2, measure="interpolation", arm=WEIGHTS, split="report", metric="kl_other_nats", strength=a,
             unit="L8.mlp", prompt=[f"report{i}" for i in range(20)])
        for a in GRID
    ]  # fmt: skip
    run = run_of(pl.concat([planted(squares), *alone]))
    (said,) = words.of_modules(run)
    assert said.startswith("The weights of L8.mlp alone leave 1.92 [95 % CI: ")
    assert "nats of D at strength 1, and 1.08 [95 % CI: " in said
    assert "(difference -0.840 [95 % CI: " in said.replace("−", "-")
    figure, table = [part for part in interpolation(run).parts if getattr(part, "name", "") == "by_modules" or "alone" in str(part)][:2]
    assert figure.chart(run.rows, run.summary, run.manifest, width=350) is not None
    (line,) = table["rows"]
    assert line[0] == "L8.mlp"
    assert line[-2] == "1.46 [1.46, 1.46]"
    assert findings.half(run.rows, WEIGHTS) == findings.half(planted(squares), WEIGHTS), "all weights are as without it"


LINEAR = ("lora", "rslora", "adalora", "lora with saved modules", "lora on embedding and head")


def adapted(kind: str) -> tuple[Model, nn.Module, nn.Module]:
    """A base with an adapter of one kind that is off; and the base, and the network with the adapter merged, by themselves."""
    net = pico("llama").net
    alone = copy.deepcopy(net)
    torch.manual_seed(7)
    with quiet():
        peft: Any = get_peft_model(net, adapters_made.KINDS[kind]())
    for parameter in peft.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    merged = copy.deepcopy(peft).merge_and_unload()
    peft.base_model.disable_adapter_layers()
    return wrap(peft.get_base_model().eval(), side="base", ref="adapted"), alone, merged


@pytest.mark.parametrize("kind", LINEAR)
def test_an_adapter_has_a_strength(kind: str) -> None:
    base, alone, merged = adapted(kind)
    changes = changes_of_adapter(base)
    for strength, logits in of_weights(base, changes, IDS, [0.0, 0.5, 1.0, 2.0]):
        expected = naive(mixed(alone, merged, strength), IDS)
        assert kl_nats(expected, logits).max() < 1e-9
    assert torch.equal(naive(base.net, IDS), naive(alone, IDS)), "it is off again"


def test_at_one_an_adapter_is_on_to_the_bit() -> None:
    base, _, _ = adapted("lora")
    changes = changes_of_adapter(base)
    with scaled(base, changes, 1.0):
        found = naive(base.net, IDS)
    for unit in changes.units:
        for layer in changes.switches[unit]:
            layer.enable_adapters(True)
    assert torch.equal(found, naive(base.net, IDS))


@pytest.mark.parametrize("kind", ["dora", "ia3"])
def test_an_adapter_that_does_not_grow_with_a_factor_is_refused(kind: str) -> None:
    base, _, _ = adapted(kind)
    with pytest.raises(ModelError, match=r"does not grow with a factor.*Merge the adapter"):
        list(of_weights(base, changes_of_adapter(base), IDS, [0.5]))
    assert all(layer.disable_adapters for layers in changes_of_adapter(base).switches.values() for layer in layers)


# ---- numbers of one prompt -----------------------------------------------------------------------------------------------------------


def test_what_both_have_alike_stays_and_the_ends_are_exact() -> None:
    base, tuned = torch.randn(1000), torch.randn(1000) * 50
    base[:3] = tuned[:3] = torch.tensor([-torch.inf, 1.0, -2.0])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        own, other = base.to(dtype), tuned.to(dtype)
        assert torch.equal(towards(own, other, 0.0), own)
        assert torch.equal(towards(own, other, 1.0), other)
        assert torch.equal(towards(own, other, 2.0)[:3], own[:3])
        expected = own.double() - 0.5 * (other.double() - own.double())
        torch.testing.assert_close(towards(own, other, -0.5)[3:].double(), expected[3:], rtol=torch.finfo(dtype).eps * 4, atol=1e-4)


def test_rows_of_logits_in_between_are_from_the_definitions() -> None:
    torch.manual_seed(0)
    clean = CleanLogits(base=torch.randn(4, 30), tuned=torch.randn(4, 30))
    label = Label(arm=LOGITS, split="report", prompts=["a", "b", "c", "d"])
    for strength, logits in of_logits(clean, (-0.5, 0.0, 0.3, 1.0, 2.0)):
        found = formula.measure(logits, clean, label, strength)
        for i, prompt in enumerate("abcd"):
            mean = clean.base[i].double() + strength * (clean.tuned[i].double() - clean.base[i].double())
            one = dict(where(found, prompt=prompt).select("metric", "value").iter_rows())
            assert one["kl_other_nats"] == pytest.approx(laws.kl_nats(clean.tuned[i], mean), rel=1e-4, abs=1e-9)
            assert one["kl_own_nats"] == pytest.approx(laws.kl_nats(clean.base[i], mean), rel=1e-4, abs=1e-9)
            assert one["top1_same"] == float(mean.argmax() == clean.base[i].argmax())
            assert one[OF_TUNED] == float(mean.argmax() == clean.tuned[i].argmax())
            assert where(found, prompt=prompt)["strength"].unique().to_list() == [strength]


def test_a_loop_repeats_its_4grams() -> None:
    assert repeated(torch.tensor([1, 2, 3, 4, 5, 6])) == 0
    assert repeated(torch.tensor([1, 2] * 10)) == pytest.approx(1 - 2 / 17)
    assert math.isnan(repeated(torch.tensor([1, 2, 3])))


# ---- between strengths ---------------------------------------------------------------------------------------------------------------

GRID = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def planted(of: Callable[[str, str, str, float], Any], *, n: int = 20, n_neutral: int = 16, forms: tuple[str, ...] = FORMS) -> pl.DataFrame:
    """Rows of planted values: `of(form, split, metric, strength)` for all prompts of a split."""
    frames = [empty()]
    for form in forms:
        for split, many in (("report", n), ("neutral", n_neutral)):
            for metric in ("kl_other_nats", "kl_own_nats"):
                for a in GRID:
                    values = np.broadcast_to(np.asarray(of(form, split, metric, a), float), many).copy()
                    names = [f"{split}{i}" for i in range(many)]
                    columns = {"arm": form, "split": split, "metric": metric, "strength": a, "prompt": names}
                    frames.append(rows(values, measure="interpolation", **columns))
    d = rows(np.broadcast_to(np.asarray(of(forms[0], "report", "kl_other_nats", 0.0), float), n).copy(), measure="divergence", split="report",
             metric="kl_tuned_base_nats", prompt=[f"report{i}" for i in range(n)])  # fmt: skip
    return pl.concat([*frames, d])


STEEP = {WEIGHTS: 1.0, LOGITS: 2.0, STATES: 0.7}


def squares(form: str, split: str, metric: str, a: float) -> Any:
    """KLs that are squares, the costs of a form STEEP times those of weights in strength; prompts that differ in size alone."""
    many = 20 if split == "report" else 16
    size = np.linspace(0.5, 1.5, many)
    return size * (3 * (1 - a) ** 2 if metric == "kl_other_nats" else 0.2 * (STEEP[form] * a) ** 2)


def test_of_squares_every_number_between_strengths_is_exact() -> None:
    table = planted(squares)
    half = findings.half(table, LOGITS)
    assert half
    assert (half.value, half.low, half.high) == pytest.approx((1 - 0.5**0.5,) * 3)
    found = {(one.form, one.weights): one for one in findings.matched(table)}
    for (form, weights), one in found.items():
        expected = weights / STEEP[form]
        assert one.neutral == pytest.approx(0.2 * weights**2)
        if expected <= 2:
            assert one.strength.value == pytest.approx(expected)
            assert one.left.value == pytest.approx(3 * (1 - expected) ** 2)
        else:
            assert math.isnan(one.strength.value)
            assert math.isnan(one.left.value)
    assert (STATES, 2.0) in found


def test_levels_that_no_strength_reaches_have_no_number() -> None:
    strengths, means = np.array([0.0, 1.0, 2.0]), np.array([[0.0, 1.0, 4.0]])
    assert findings.reach(strengths, means, np.array([1.0])) == pytest.approx([1.0])
    assert findings.reach(strengths, means, np.array([2.25])) == pytest.approx([1.5])
    assert math.isnan(findings.reach(strengths, means, np.array([5.0]))[0])
    assert math.isnan(findings.between(strengths, means, np.array([2.5]))[0])
    assert math.isnan(findings.between(strengths, means, np.array([np.nan]))[0])
    assert findings.between(strengths, means, np.array([2.0])) == pytest.approx([4.0])


@pytest.mark.parametrize("n", [6, 20])
def test_the_interval_of_half_holds_the_truth(n: int) -> None:
    """Of prompts whose way differs in length: D_i (1 - a / h_i)^2 up to its end, whose mean over all prompts is known by many of them."""

    def left(random: np.random.Generator, n: int) -> np.ndarray:
        end = random.uniform(0.6, 1.8, n)[:, None]
        return random.lognormal(0, 0.5, n)[:, None] * (1 - np.array(GRID) / end) ** 2

    def half_of(values: np.ndarray) -> findings.Number:
        curve = findings.Curve(strengths=np.array(GRID), values=values)
        drawn = curve.drawn()
        return findings.number(findings.reach(curve.strengths, drawn, drawn[:, 1] / 2), len(values))

    truth = half_of(left(np.random.default_rng(1), 4000)).value
    studies = [half_of(left(np.random.default_rng([2, seed]), n)) for seed in range(200)]
    held = np.mean([one.low <= truth <= one.high for one in studies])
    assert 0.91 <= held <= 0.99


# ---- words and page ------------------------------------------------------------------------------------------------------------------


def run_of(table: pl.DataFrame, **manifest: Any) -> Run:
    return Run(rows=table, summary=pl.DataFrame(), manifest={"interpolation": {"layer": 3, "answers": []} | manifest})


def test_sentences_say_what_was_planted() -> None:
    half, states, beyond = words.lead(run_of(planted(squares)))
    assert half.startswith("Half of D is gone at strength 0.29 by weights, at 0.29")
    assert states.startswith(
        "Activations moved at the output of block 3 move unrelated prompts as far as the tuned model does (0.200 nats) at strength"
    )
    assert "at strength 1.4" in states
    assert "further from the base than the tuned model (KL(base ‖ run) 0.800" in beyond
    assert "0.200 at strength 1; p = " in beyond
    assert "on the test prompts" in beyond
    assert "on unrelated prompts" in beyond


def test_nothing_is_said_to_grow_that_a_test_does_not_find() -> None:
    noise = np.where(np.arange(20) % 2, 1.0, -1.0)

    def flat(form: str, split: str, metric: str, a: float) -> Any:
        if metric == "kl_own_nats" and a:
            return 1 + 0.5 * noise[: 20 if split == "report" else 16] * (a > 1)
        return squares(form, split, metric, a)

    (beyond,) = words.further(run_of(planted(flat)))
    assert beyond.count("no further from the base than the tuned model, as far as can be told") == 2


def test_what_does_not_get_there_is_said_so() -> None:
    def stuck(form: str, split: str, metric: str, a: float) -> Any:
        return 3.0 if metric == "kl_other_nats" and form == STATES else 0.0 if form == STATES else squares(form, split, metric, a)

    run = run_of(planted(stuck))
    assert "By activations no strength that was run takes off half of D." in words.halves(run)
    assert words.activations(run)[0].endswith("at no strength that was run.")
    cells = [cell for part in interpolation(run).parts if isinstance(part, dict) for row in part.get("rows", []) for cell in row]
    assert "not reached" in cells


def test_loops_are_counted_beside_the_strengths_of_answers() -> None:
    said = [
        rows([0.0, 0.5], measure="interpolation", arm=WEIGHTS, split="report", metric=REPEATED, strength=a, prompt=["a", "b"])
        for a in (0.0, 2.0)
    ]
    run = run_of(pl.concat([planted(squares), *said]))
    assert words.further(run)[0].endswith("mean of 2: 25 % at 0, 25 % at 2.")


# ---- several runs --------------------------------------------------------------------------------------------------------------------


def loaded(name: str, size: float, texts: str = "the same") -> Loaded:
    """A run whose neutral KL is size a^2 and whose KLs on its own prompts are the planted squares."""

    def of(form: str, split: str, metric: str, a: float) -> Any:
        return size * a**2 if (split, metric) == ("neutral", "kl_own_nats") else squares(form, split, metric, a)

    names = {("neutral", f"neutral{i}"): f"{texts} {i}" for i in range(16)}
    return Loaded(name=name, folder=Path(name), content=run_of(planted(of)), texts=names)


def test_each_change_is_brought_to_the_size_of_the_other() -> None:
    """A cost of c a^2 is another's c' at a = sqrt(c' / c), by construction."""
    small, large = loaded("small", 0.04), loaded("large", 0.09)
    up, down = findings.at_size_of(small.content.rows, large.content.rows), findings.at_size_of(large.content.rows, small.content.rows)
    assert up
    assert down
    for found, size, strength in ((up, 0.09, 1.5), (down, 0.04, 2 / 3)):
        assert found.size == pytest.approx(size)
        assert found.strength.value == pytest.approx(strength)
        assert found.left.value == pytest.approx(3 * (1 - strength) ** 2)
        assert found.gone.value == pytest.approx(0.2 * strength**2)
    section = axis(SimpleNamespace(runs=[small, large]))  # type: ignore[arg-type]
    (part,) = section.parts
    said = [[*row[:3], row[3][:4]] for row in part["rows"]]
    assert said == [["small", "large", "0.0900", "1.50"], ["large", "small", "0.0400", "0.67"]]


def test_sizes_that_cannot_be_had_are_said_so() -> None:
    small, huge = loaded("small", 0.04), loaded("huge", 4.0)
    elsewhere = loaded("elsewhere", 0.04, texts="others")
    without = Loaded(name="without", folder=Path("w"), content=run_of(empty()), texts={})
    rows_of, said = axis(SimpleNamespace(runs=[small, huge, elsewhere, without])).parts  # type: ignore[arg-type]
    cells = {(row[0], row[1]): row[2:] for row in rows_of["rows"]}
    assert cells["small", "huge"] == ["4.00", "not reached", "–", "–"]
    assert cells["small", "elsewhere"] == ["other unrelated prompts", "–", "–", "–"]
    assert said["text"].startswith("No size is known of without")


# ---- whole studies -------------------------------------------------------------------------------------------------------------------


def test_a_run_begins_at_d_and_ends_at_the_tuned_model(every_measure: Path) -> None:
    every = read_rows(every_measure / "run")
    found = where(every, measure="interpolation", split="report", metric="kl_other_nats")
    d = dict(
        where(every, measure="divergence", split="report", metric="kl_tuned_base_nats", unit=None, control=None)
        .select("prompt", "value")
        .iter_rows()
    )
    for prompt, value in where(found, strength=0.0).select("prompt", "value").iter_rows():
        assert value == pytest.approx(d[prompt], rel=1e-5)
    assert where(found, strength=1.0, arm=[WEIGHTS, LOGITS], unit=None)["value"].max() < 1e-9  # type: ignore[operator]
    alone = where(found, strength=1.0, unit="L1.mlp").join(
        where(every, measure="grafting", arm="alone", layer=1, site="mlp", metric="kl_other_nats", split="report"), on="prompt"
    )
    assert len(alone) == 3
    assert alone["value"].to_list() == pytest.approx(alone["value_right"].to_list(), rel=1e-5), "at 1 a module's weights are a graft"
    assert where(found, strength=1.0, arm=STATES)["value"].min() > 1e-6  # type: ignore[operator]
    patched = where(every, measure="patching", split="report", metric="kl_other_nats", direction="base<-tuned", arm="identity", unit=None,
                    control=None, layer=1, site="resid_post")  # fmt: skip
    beside = where(found, strength=1.0, arm=STATES).join(patched, on="prompt")
    assert len(beside) == 5
    assert beside["value"].to_list() == pytest.approx(beside["value_right"].to_list(), rel=1e-4), "at 1 activations are a patch"
    assert where(every, measure="interpolation", split="neutral", metric="kl_own_nats", strength=0.0)["value"].abs().max() == 0
    manifest = read_manifest(every_measure / "run")["interpolation"]
    assert manifest["layer"] == 1
    assert [one["strength"] for one in manifest["answers"]] == [0.0, 1.5]


def test_the_page_of_a_run_has_its_figure_and_tables(every_measure: Path) -> None:
    run = parts.load(every_measure / "run")
    section = interpolation(run)
    figure = section.parts[0]
    assert figure.chart(run.rows, run.summary, run.manifest, width=700) is not None
    drawn, tables = (list(filter(lambda part: isinstance(part, Drawn) is kind, section.parts)) for kind in (True, False))
    assert [part.name for part in drawn] == ["along_the_way", "by_modules"]
    assert len(tables) == 4


def planned(folder: Path, measures: list[Any]) -> Any:
    path = made(folder)
    study = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(study | {"measures": measures}))
    return prepare(load_study(path)[0], RunOptions(device="cpu"), EXPERIMENTS).plan


def test_neutral_prompts_are_those_of_steering_and_each_reads_its_own_number(tmp_path: Path) -> None:
    plan = planned(tmp_path, [{"steering": {"side_prompts": 0}}, {"interpolation": {"side_prompts": 4}}])
    assert not [cell for cell in plan.cells if cell.stage == "side_effects"]
    assert {
        len(cell.items)
        for cell in plan.cells
        if cell.stage == "interpolation" and cell.key["split"] == "neutral" and cell.key["arm"] == WEIGHTS
    } == {4}
    both = planned(tmp_path / "both", [{"steering": {"side_prompts": 3}}, {"interpolation": {"side_prompts": 4}}])
    assert {len(cell.items) for cell in both.cells if cell.stage == "side_effects"} == {3}
    assert {
        len(cell.items)
        for cell in both.cells
        if cell.stage == "interpolation" and cell.key["split"] == "neutral" and cell.key["arm"] == WEIGHTS
    } == {3}


def test_a_study_without_report_prompts_says_what_is_left_out(tmp_path: Path) -> None:
    path = made(tmp_path)
    study = yaml.safe_load(path.read_text())
    study["prompts"].pop("report")
    path.write_text(yaml.safe_dump(study | {"measures": ["interpolation"]}))
    plan = prepare(load_study(path)[0], RunOptions(device="cpu"), EXPERIMENTS).plan
    assert {"what": "interpolation", "why": "the study has no test prompts"} in plan.skipped


def test_strengths_have_their_ends_and_a_wrong_one_is_refused() -> None:
    assert InterpolationOptions(strengths=(0.5,)).strengths == (0.0, 0.5, 1.0)
    assert InterpolationOptions(answer_strengths=(2, 1)).answer_strengths == (1.0, 2.0)
    with pytest.raises(StudyError, match=r"interpolation.*strengths.*11"):
        make_study(
            {"pair": {"base": "a", "tuned": "b"}, "prompts": {"file": "p.jsonl"}, "measures": [{"interpolation": {"strengths": [11]}}]}
        )
