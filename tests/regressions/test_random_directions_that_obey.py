"""What a user saw: "k directions have x of D with little harm", of random directions, in 15 to 20 of 20 studies; and "no edit along its directions",
of edits at another layer than the one that was spoken of."""

import polars as pl
import pytest
import torch
from torch import Tensor

from mechdiff.engine.distributions import kl_nats
from mechdiff.engine.outcome import CleanLogits
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.steering import findings as steering_findings
from mechdiff.measures.steering import formula as steering_formula
from mechdiff.measures.steering.doses import QUESTIONS, dose
from mechdiff.measures.steering.findings import Limits
from mechdiff.measures.steering.formula import Place, Reader, edits, few, random_edits
from mechdiff.measures.steering.subspaces import Subspace, change_subspace
from mechdiff.measures.steering.words import does_it_obey, headline
from mechdiff.report.headlines import admit
from mechdiff.rows import rows
from mechdiff.statistics import summary
from mechdiff.validate import edits as validate_edits
from mechdiff.validate import planted
from pico import same_tokens

pytestmark = pytest.mark.ci

LAYER, LAST = 1, 3
TOKENS = same_tokens(259)
N_REPORT = 8


def late_pair(size: float) -> planted.Planted:
    """The two models differ in block 3 alone: after block 1 their states are equal, and no direction there is that of the change."""
    return planted.plant(lambda net: validate_edits.add_low_rank(validate_edits.mlp_output(net, LAST), 2, size, 7), n_prompts=14)


def random_directions(pair: planted.Planted, seed: int) -> Subspace:
    states = pair.states("base", "resid_post")[LAYER].double()
    made = torch.randn(states.shape[1], 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean = made[:, 0] / made[:, 0].norm() * 0.3 * states.norm(dim=-1).mean()
    return Subspace(mean=mean, basis=torch.linalg.qr(made)[0], origin=states.mean(0), relative_size=0.3, split_half_cosine=1.0)


def study(
    pair: planted.Planted, directions: Subspace, allowed: Limits, *, layer: int = LAYER, draws: int = steering_formula.TEST_DRAWS
) -> pl.DataFrame:
    """Rows as a run makes them: side effects of each dose on neutral prompts, then effects on report prompts beside random directions of the dose."""
    report = {f"p{i}": torch.tensor(ids) for i, ids in enumerate(pair.prompts[:N_REPORT])}
    neutral = {f"n{i}": torch.tensor(ids) for i, ids in enumerate(pair.prompts[N_REPORT:])}
    place = Place(kind="resid_post", subspaces={layer: directions})
    logits: dict[str, Tensor] = {side: pair.logits(side)[:N_REPORT].float() for side in ("base", "tuned")}
    at = {"measure": "divergence", "split": "report", "prompt": list(report)}
    parts = [
        rows(kl_nats(logits["tuned"], logits["base"]).numpy(), metric="kl_tuned_base_nats", **at),
        rows(kl_nats(logits["base"], logits["tuned"]).numpy(), metric="kl_base_tuned_nats", **at),
    ]
    for direction, arm in QUESTIONS.items():
        model, columns = (pair.base if arm == "add" else pair.tuned), {"direction": direction}
        tried = few(edits(place, direction, strengths=(0.25, 0.5, 2.0), draws=0, seed=0))
        reads = {"model": model, "tokens": TOKENS, "max_rows": 4096}
        sides = steering_formula.measure_side_effects(Reader(prompts=neutral, **reads), tried, columns)
        chosen = dose(sides, direction, max_kl_nats=allowed.kl_nats, max_perplexity_ratio=allowed.perplexity_ratio)
        drawn = random_edits(place, arm, chosen["rank"], chosen["strength"], draws=draws, seed=99) if chosen else []
        found = steering_formula.measure_effects(
            Reader(prompts=report, **reads), [*tried, *drawn], CleanLogits(**logits), {**columns, "split": "report"}
        )
        parts += [sides, found]
    return pl.concat(parts, rechunk=True)


def obeys(table: pl.DataFrame, allowed: Limits) -> bool:
    return any(one.obeys for one in steering_findings.tested(table, allowed))


@pytest.mark.parametrize(
    ("size", "studies", "most"),
    [pytest.param(0.15, 20, 4, marks=pytest.mark.slow), pytest.param(0.6, 20, 4, marks=pytest.mark.slow), (0.6, 9, 2)],
)
def test_random_directions_obey_in_one_study_in_twenty(size: float, studies: int, most: int) -> None:
    """5 % of 20 is 1, and 5 or more have a chance of 0.3 %; of 9, 3 or more have one of 0.8 %."""
    pair, allowed = late_pair(size), Limits()
    found = [study(pair, random_directions(pair, seed), allowed) for seed in range(studies)]
    asked = sum(len(steering_findings.tested(table, allowed)) for table in found)
    assert asked >= 0.75 * studies, "a dose was within the limits, and tested"
    assert sum(obeys(table, allowed) for table in found) <= most


def test_damage_is_no_way_to_the_base() -> None:
    """Large random edits of the tuned model move it by several D, and away from both."""
    pair, allowed = late_pair(0.15), Limits(kl_nats=50, perplexity_ratio=1e9)
    table = study(pair, random_directions(pair, 3), allowed, draws=3)
    of_tuned = steering_findings.effects(table).filter(pl.col("edit") == "ablate", pl.col("rank") == 8, pl.col("control").is_null())
    own = table.filter(pl.col("metric") == "kl_own_nats", pl.col("arm") == "ablate", pl.col("rank") == 8, pl.col("control").is_null())
    assert own["value"].to_torch().mean() > pair.d_nats[:N_REPORT].mean(), "it was said to have more than all of D"
    assert (of_tuned["share"] < 0).all()


def test_a_change_that_is_one_direction_still_obeys() -> None:
    """The tuned model is the base with a constant added after block 1's MLP: adding it goes the whole way, and ablating it back."""
    pair = planted.plant(validate_edits.add_mlp_bias, n_prompts=14, prepare=validate_edits.give_mlp_bias)
    layer = validate_edits.BIASED
    base, tuned = (pair.states(side, "resid_post")[layer, :N_REPORT] for side in ("base", "tuned"))
    allowed = Limits(kl_nats=1e3, perplexity_ratio=1e9)
    table = study(pair, change_subspace(base, tuned, 8), allowed, layer=layer)
    found = {one.edit: one for one in steering_findings.tested(table, allowed)}
    assert found["add"].obeys
    assert found["add"].p == pytest.approx(2 / 40), "the fewest that 39 draws and two questions can give"
    manifest = {"steering": {"limits": {"max_side_kl_nats": 1e3, "max_perplexity_ratio": 1e9}}}
    spoken = [one.text for one in headline(table, summary.summarise(table, NUMBERS), manifest) if admit(one) is None]
    assert any(text.startswith("adding the mean difference at L") for text in spoken)


def test_the_layer_of_the_side_effects_is_named_and_nothing_is_said_of_others() -> None:
    pair = late_pair(0.6)
    table = study(pair, random_directions(pair, 0), Limits(), draws=0)
    manifest = {"steering": {"limits": {"max_side_kl_nats": 1e-9, "max_perplexity_ratio": 1.0}}}
    said = does_it_obey(table, summary.summarise(table, NUMBERS), manifest)
    every = "Unrelated prompts change beyond the limits under every dose tried of"
    assert said[0].startswith(f"{every} the mean difference added to the base at L{LAYER}.resid_post (strengths 0.25, 0.5 and 1; limits")
    ablated = f"the change's directions ablated in the tuned model at L{LAYER}.resid_post"
    assert said[1].startswith(f"{every} {ablated} (numbers of directions 1, 2, 4 and 8)"), "the limits are said once"
    assert said[-1] == f"Side effects on unrelated prompts were measured at L{LAYER}.resid_post only, with edits at all positions."
    assert headline(table, summary.summarise(table, NUMBERS), manifest) == []


def test_without_random_directions_nothing_is_said_to_work() -> None:
    pair, allowed = late_pair(0.6), Limits(kl_nats=1e3, perplexity_ratio=1e9)
    for draws in (0, 1, 38):
        table = study(pair, random_directions(pair, 0), allowed, draws=draws)
        assert steering_findings.tested(table, allowed) == []
