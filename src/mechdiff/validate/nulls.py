"""Where there is nothing to find, how often does each reported test find something, and how often does each interval hold the truth?

    rates(2000, 1000)        one line for every test and interval of a report (METHOD C: P20)

A *false alarm* is p (or q) <= 0.05 where the null is true; a test is sound where they are no more than 5 % + two standard errors of so many
repeats (t tests of numbers that are no means hold in the limit only: up to 7 % pass). An interval of 95 % should hold the truth in 95 % of
studies: one of the geometric mean must, in 93 to 97 %; bootstrap and jackknife intervals are approximate (a little short where values are few and
skewed) and pass from 90 %, or from what the page says of them. All laws are drawn here, so the truth is known: states of a tiny planted pair
read on other prompts for each model, exponential or log-normal values per prompt, exchanged labels.
"""

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import torch

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.maps.maps import Map
from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.factorial import formula as factorial_formula
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.measures.similarity.geometry import pairings
from mechdiff.measures.transport.formula import Sample, permuted_quality, quality
from mechdiff.rows import rows
from mechdiff.statistics import intervals, simulated
from mechdiff.statistics.metric import facts
from mechdiff.statistics.nulls import permutation_p, with_q
from mechdiff.statistics.summary import summarise
from mechdiff.validate import edits, planted, skewed, spreads
from mechdiff.validate.checks import Check, above, at_most, near
from mechdiff.validate.planted import Bench
from mechdiff.validate.rates import FAMILY, LEVEL, WRONG, Rate, coverage, false_alarms

PROMPTS = 24
"""In a simulated study, where no other number is named."""
DRAWS = 99


def similarity_of_strangers(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """States of both models on disjoint sets of prompts, FAMILY sites at a time."""
    states = _states()
    found = []
    for _ in range(-(-repeats // FAMILY)):
        base, tuned = {}, {}
        for layer in range(FAMILY):
            mixed = torch.from_numpy(random.permutation(len(states["base"])))
            site = Site(layer, "resid_post")
            base[site], tuned[site] = states["base"][mixed[:PROMPTS]], states["tuned"][mixed[PROMPTS : 2 * PROMPTS]]
        names = [str(i) for i in range(PROMPTS)]
        measured = similarity_formula.measure(base, tuned, names, "report", orders=pairings(names, DRAWS, int(random.integers(2**31))))
        found.append(with_q(permutation_p(measured, facts(NUMBERS))))
    table = pl.concat(found, rechunk=True)
    for name in table["metric"].unique().sort():
        yield false_alarms(
            f"{name}: the models are alike beyond chance (permuted pairs)", table.filter(pl.col("metric") == name)["p"].to_numpy()
        )
    families = np.array([one.filter(pl.col("metric") == "cka")["q"].min() for one in found], dtype=float)
    yield false_alarms(f"cka: any of {FAMILY} sites by q (Benjamini-Hochberg)", families)


def maps_of_strangers(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Changes of other prompts: no map can carry them."""
    states = _states()
    change = states["tuned"] - states["base"]
    groups = torch.arange(PROMPTS)
    for arm in ("anchored_ridge", "rrr"):
        p = []
        for _ in range(repeats):
            here, there = torch.from_numpy(random.permutation(len(change))), torch.from_numpy(random.permutation(len(change)))
            source, moved = states["base"][here[: 2 * PROMPTS]], change[there[: 2 * PROMPTS]]
            fit, test = (
                Sample(base=source[part], tuned=source[part] + moved[part], groups=groups)
                for part in (slice(0, PROMPTS), slice(PROMPTS, None))
            )
            fitted = Map(arm).fit(fit.base, fit.tuned, groups=groups)
            real = float(quality(fitted.transform(test.base), test.base, test.tuned, moved[:PROMPTS].double().mean(0))["r2_change"])
            seed = int(random.integers(2**31))
            draws = permuted_quality(fitted, fit, test, draws=DRAWS, seed=seed)
            p.append(_p_of(real, draws))
        yield false_alarms(f"{arm}: R² of the change beyond that of refits on wrong pairs", p)


def halves(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Crossed halves of two models, as a factorial measures them: the base's own run costs D, the tuned model's nothing. Every study is a layer."""
    layers, names = range(repeats), [str(i) for i in range(PROMPTS)]
    shape = (repeats, PROMPTS)
    for cv in (0.5, 1.0):
        bb = skewed.lognormal(random, cv, shape)
        for effect, parts in (("upstream_effect", (1.5, 0.5)), ("interaction", (0.4, 0.6))):
            tb, bt = (part * bb * skewed.lognormal(random, cv / 2, shape) for part in parts)
            cost = {"bb": bb, "bt": bt, "tb": tb, "tt": np.zeros(shape)}
            runs = {arm: dict.fromkeys(factorial_formula.SCORES, torch.from_numpy(value)) for arm, value in cost.items()}
            measured = factorial_formula.measure(runs, layers, names, columns={"split": "report"})
            p = summarise(measured, NUMBERS).filter(pl.col("metric") == f"{effect}_nats", pl.col("layer").is_not_null())["p"].to_numpy()
            yield false_alarms(f"{effect} of a factorial apart from 0 (bb = D, tt = 0, CV {cv}, {PROMPTS} prompts)", p)


def clusters(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Prompts that are four by four of one template: what is counted is the template."""
    names = [f"p{i:02}" for i in range(32)]
    lines = [{"split": "report", "id": name, "cluster": f"template {i // 4}"} for i, name in enumerate(names)]
    for correlation in (0.5, 0.8):
        for cv in (0.5, 1.0):
            values = skewed.in_clusters(random, cv, 8, 4, correlation, repeats).reshape(32, repeats)
            place = {"measure": "patching", "split": "report", "metric": "kl_own_nats", "layer": np.repeat(np.arange(repeats), 32)}
            table = rows(values.T.flatten(), prompt=names * repeats, **place)
            found = summarise(table, NUMBERS, prompts=lines).sort("layer")
            held = ((found["ci_low"] <= 1) & (found["ci_high"] >= 1)).to_numpy()
            said = float(np.mean(np.minimum(found["coverage"].to_numpy(), LEVEL)))
            what = f"32 prompts, 8 clusters of 4 that share {correlation:.0%} of the logarithms' variance, CV {cv}, as the page says"
            yield coverage(what, held, least=said - 0.025)
    few = summarise(table.filter(pl.col("prompt") < "p16", pl.col("layer") < 50), NUMBERS, prompts=lines)
    yield coverage("16 prompts, 4 clusters of 4: no interval is given", few["ci_low"].is_null().to_numpy(), least=1.0)


def paired(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Differences on the same prompts that are 0 on average and skewed to one side; layers depend on each other."""
    for n, cv in ((16, 0.5), (16, 1.0), (32, 1.0)):
        p = []
        for seed in range(repeats):
            common = skewed.lognormal(random, cv, (n, 1))
            values = (common - 1) + skewed.null("a difference of independent values, one of half the CV", random, cv, (n, FAMILY))
            p.append(intervals.family_p(values, seed=seed).min())
        yield false_alarms(f"any of {FAMILY} paired differences, family-wise (max-t, CV {cv}, {n} prompts)", p)


def shares_of_prompts(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Two answers that are right alike often, and the interval of one share."""
    right = random.random((repeats, 2, PROMPTS)) < 0.6
    only = [(int((one & ~other).sum()), int((other & ~one).sum())) for one, other in right]
    yield false_alarms("one model right more often than the other (McNemar, exact)", [intervals.mcnemar(*pair) for pair in only])
    for share in (0.05, 0.4):
        low, high = intervals.wilson((random.random((repeats, 32)) < share).mean(axis=1), 32)
        yield coverage(f"a share of prompts of {share:.0%} (Wilson, 32 prompts)", (low <= share) & (share <= high))


def behaviour_of_twins(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Two models whose answers follow one law: is any of the spoken scores, all together, said to differ?

    Refusals, right answers and right choices are coins that both models toss for a prompt of its own difficulty; style is counts, most of them 0;
    soft refusal and the margin of choices are a prompt's own value and noise.
    """
    for n in (8, 12, 24, 48):
        seen = []
        for _ in range(repeats // 4):
            group = behaviour_findings.Group(name="report", language=None, rows=_twins(n, random))
            spoken = behaviour_findings.to_the_point(group, behaviour_findings.compared(group.rows), "refusal_soft_nats")
            seen.append(0.0 if any(one.counts for one in spoken) else 1.0)
        yield false_alarms(f"any of {len(spoken)} spoken scores of two models alike in distribution (Holm, {n} prompts)", seen)


def _twins(n: int, random: np.random.Generator) -> pl.DataFrame:
    """Rows of `behaviour` of `n` report prompts, clean runs of both models."""
    rate, own = random.beta(0.5, 0.5, (3, n)), random.normal(0, 1, (3, n))
    parts = []
    for side in ("base", "tuned"):
        values = {
            "refusal": random.random(n) < 0.3 * rate[0],
            "exact_match": random.random(n) < rate[1],
            "mc_correct": random.random(n) < rate[2],
            "mc_margin_per_byte_nats": own[0] + random.standard_t(4, n),
            "refusal_soft_nats": own[1] + random.normal(0, 0.3, n),
            "style_per_100_words": random.poisson(0.4 * np.exp(own[2])) * random.uniform(2, 10, n),
        }
        place = {"measure": "behaviour", "split": "report", "unit": side, "prompt": [f"p{i:03d}" for i in range(n)]}
        parts += [rows(value.astype(float), metric=metric, **place) for metric, value in values.items()]
    return pl.concat(parts, rechunk=True)


def means(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Values per prompt of known means, and their ratio."""
    for cv, n in ((1.0, 32), (3.5, 150)):
        deviation = np.sqrt(np.log1p(cv**2))
        values = random.lognormal(-(deviation**2) / 2, deviation, (n, max(repeats, 2000)))
        low, high = intervals.mean_intervals(values)
        known = simulated.coverage(cv, n) or 0.0
        yield coverage(
            f"a mean in nats (bootstrap-t, CV {cv}, {n} prompts), as the page says", (low <= 1) & (high >= 1), least=known - 0.02
        )
        _, low, high = intervals.geometric(values)
        truth = np.exp(-(deviation**2) / 2)
        yield coverage(f"a geometric mean (log-t, CV {cv}, {n} prompts)", (low <= truth) & (truth <= high), least=0.93, most=0.97)
    total = random.exponential(size=(32, repeats))
    _, low, high = intervals.share_intervals(total * random.uniform(0, 0.8, total.shape), total)
    yield coverage("a share of D (bootstrap-t, 32 prompts)", (low <= 0.4) & (high >= 0.4))
    one, other = random.exponential(2, (32, repeats)), random.exponential(1, (32, repeats))
    _, low, high = intervals.asymmetry_intervals(one, other)
    yield coverage("KL increase against recovery (bootstrap-t, 32 prompts)", (low <= 1 / 3) & (high >= 1 / 3))
    for n in (8, 16, 32):
        for tested in (1, 4):
            wrong, studies = WRONG / tested, max(repeats, 2000)
            seen = random.normal(float(simulated.detectable(np.array(1.0), n, level=1 - wrong)), 1, (n, studies))
            of = f"one of {tested} scores" if tested > 1 else "one mean"
            what = f"the smallest effect that would have been found ({of}, `mean_p`, {n} prompts)"
            power = float((intervals.mean_p(seen) <= wrong).mean())
            yield Rate(what=what, kind="power", asked=0.8, least=0.77, most=0.83, found=power, repeats=studies)


def similarity_intervals(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Debiased CKA of Gaussian states, whose value in the population follows from their covariances."""
    d, n = 12, 40
    scale, mixing = np.linspace(0.3, 1.5, d), np.random.default_rng(0).normal(size=(d, d)) / np.sqrt(d)
    cross = scale[:, None] ** 2 * mixing
    covariance = mixing.T @ cross + 0.25 * np.eye(d)
    truth = (cross**2).sum() / (np.sqrt((scale**4).sum()) * np.sqrt((covariance**2).sum()))
    held = []
    for start in range(0, repeats, 16):
        sites = [Site(layer, "resid_post") for layer in range(min(16, repeats - start))]
        x = {site: random.normal(size=(n, d)) * scale for site in sites}
        base = {site: torch.from_numpy(x[site]) for site in sites}
        tuned = {site: torch.from_numpy(x[site] @ mixing + random.normal(0, 0.5, (n, d))) for site in sites}
        measured = similarity_formula.measure(base, tuned, [str(i) for i in range(n)], "report")
        without = measured.filter(pl.col("metric") == "cka_without_prompt").group_by("layer").agg(spread=pl.col("value").std())
        table = measured.filter(pl.col("metric") == "cka").join(without, on="layer")
        low, high = intervals.jackknife_below_1(table["value"].to_numpy(), table["spread"].to_numpy(), np.array(n))
        held += list((low <= truth) & (truth <= high))
    yield coverage(f"CKA (jackknife, Fisher's z, {n} prompts)", np.array(held))


Simulation = Callable[[int, np.random.Generator], Iterator[Rate]]

SIMULATIONS: tuple[Simulation, ...] = (
    similarity_of_strangers, halves, clusters, shares_of_prompts, behaviour_of_twins, means, spreads.profiles,
    spreads.spreads, spreads.numbers_of_parts, spreads.parts_of_noise, similarity_intervals,
)  # fmt: skip
COSTLY: tuple[Simulation, ...] = (paired, maps_of_strangers)
"""A bootstrap of a family, or a hundred maps fitted anew, in each repeat."""


def rates(repeats: int, costly: int, *, seed: int = 0) -> Iterator[Rate]:
    """Every simulation, with `repeats` studies each, and `costly` of the costly ones."""
    for simulation in (*SIMULATIONS, *COSTLY):
        yield from rates_of(simulation, repeats, costly, seed=seed)


def rates_of(simulation: Simulation, repeats: int, costly: int, *, seed: int = 0) -> list[Rate]:
    """One simulation; its studies hang on its name and the seed, not on what is run beside it."""
    times = costly if simulation in COSTLY else repeats
    return list(simulation(times, np.random.default_rng([seed, *simulation.__name__.encode()])))


def _states() -> dict[str, torch.Tensor]:
    """`[prompt, d]` of both models of a planted pair, after its third block."""
    pair = planted.plant(edits.edit_attention, n_prompts=100, whole=False)
    return {side: pair.states(side, "resid_post")[2] for side in ("base", "tuned")}


def _p_of(real: float, draws: list[float]) -> float:
    place = {"measure": "transport", "metric": "r2_change", "split": "report", "layer": 0, "arm": "map"}
    named = rows(draws, control=[labels.draw("permuted", i) for i in range(len(draws))], **place)
    p = permutation_p(pl.concat([rows([real], **place), named]), facts(NUMBERS))["p"].item()
    return 1.0 if p is None else float(p)  # every refit is the same map: nothing is said


FEW = 200, 100
"""Simulated studies, and of those that take longer; `make validate-long` takes many more."""


def p20(bench: Bench) -> Iterator[Check]:
    """Null pairs: other prompts for each model, exchanged labels, runs of one law, values of a known mean."""
    for rate in rates(*FEW):
        what = f"{rate.kind}: {rate.what}"
        if rate.kind == "false alarms":
            yield at_most(what, rate.found, rate.most)
        elif rate.least == rate.most:
            yield near(what, rate.found, rate.least, 0.0)
        elif rate.most < 1:
            yield near(what, rate.found, (rate.least + rate.most) / 2, (rate.most - rate.least) / 2)
        else:
            yield above(what, rate.found, rate.least)
