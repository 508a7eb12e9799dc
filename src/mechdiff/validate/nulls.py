"""Where there is nothing to find, how often does each reported test find something, and how often does each interval hold the truth?

    rates(2000, 1000)        one line for every test and interval of a report (METHOD C: P20)

A *false alarm* is p (or q) <= 0.05 where the null is true; a test is sound where they are no more than 5 % + two standard errors of so many
repeats (t tests of numbers that are no means hold in the limit only: up to 7 % pass). An interval of 95 % should hold the truth in 95 % of
studies: one of the geometric mean must, in 93 to 97 %; bootstrap and jackknife intervals are approximate (a little short where values are few and
skewed) and pass from 90 %, or from what the page says of them. All laws are drawn here, so the truth is known: states of a tiny planted pair
read on other prompts for each model, exponential or log-normal values per prompt, exchanged labels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy import ndarray

from mechdiff import labels
from mechdiff.comparison.contrasts import WORTH
from mechdiff.maps.maps import Map
from mechdiff.measures.behaviour import findings as behaviour_findings
from mechdiff.measures.catalogue import NUMBERS
from mechdiff.measures.factorial import formula as factorial_formula
from mechdiff.measures.similarity import formula as similarity_formula
from mechdiff.measures.transport.formula import permuted_quality, quality
from mechdiff.models.sites import Site
from mechdiff.rows import rows
from mechdiff.statistics import intervals, simulated, spread
from mechdiff.statistics.metric import facts
from mechdiff.statistics.nulls import permutation_p, with_q
from mechdiff.statistics.summary import summarise
from mechdiff.validate import edits, planted, skewed

LEVEL, WRONG = 0.95, 0.05
APPROXIMATE = 0.07
"""What passes of tests that hold in the limit of many prompts: t tests of jackknifed numbers."""
PROMPTS = 24
"""In a simulated study, where no other number is named."""
FAMILY = 8
"""Layers that are tested together."""
DRAWS = 99


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How often something came out in simulated studies."""

    what: str
    kind: str
    """"false alarms", "coverage" or "power"."""
    asked: float
    least: float
    most: float
    found: float
    repeats: int

    @property
    def holds(self) -> bool:
        return self.least <= self.found <= self.most


def false_alarms(what: str, p: ndarray | list[float], *, at_most: float = 0.0) -> Rate:
    """The share of p at or below 5 %; passes within two standard errors, and, of a test that is approximate, up to `at_most`."""
    found = np.asarray(p) <= WRONG
    most = max(at_most, WRONG + 2 * (WRONG * (1 - WRONG) / len(found)) ** 0.5)
    return Rate(what=what, kind="false alarms", asked=WRONG, least=0.0, most=most, found=float(found.mean()), repeats=len(found))


def coverage(what: str, held: ndarray, *, least: float = 0.90, most: float = 1.0) -> Rate:
    """The share of intervals that hold the truth."""
    return Rate(what=what, kind="coverage", asked=LEVEL, least=least, most=most, found=float(np.mean(held)), repeats=len(held))


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
        measured = similarity_formula.measure(base, tuned, names, "report", permutations=DRAWS, seed=int(random.integers(2**31)))
        found.append(with_q(permutation_p(measured, facts(NUMBERS))))
    table = pl.concat(found)
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
            fit, test = ((source[part], source[part] + moved[part]) for part in (slice(0, PROMPTS), slice(PROMPTS, None)))
            fitted = Map(arm).fit(*fit, groups=groups)
            real = float(quality(fitted.transform(test[0]), *test, moved[:PROMPTS].double().mean(0))["r2_change"])
            seed = int(random.integers(2**31))
            draws = permuted_quality(arm, fitted, *fit, groups, test, draws=DRAWS, seed=seed)
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
        yield false_alarms(f"any of {len(spoken)} spoken scores of two models alike in law (Holm, {n} prompts)", seen)


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
    return pl.concat(parts)


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
    yield coverage("breakage against recovery (bootstrap-t, 32 prompts)", (low <= 1 / 3) & (high >= 1 / 3))
    for n in (8, 16, 32):
        for tested in (1, 4):
            wrong, studies = WRONG / tested, max(repeats, 2000)
            seen = random.normal(float(simulated.detectable(np.array(1.0), n, level=1 - wrong)), 1, (n, studies))
            of = f"one of {tested} scores" if tested > 1 else "one mean"
            what = f"the smallest effect that would have been found ({of}, `mean_p`, {n} prompts)"
            power = float((intervals.mean_p(seen) <= wrong).mean())
            yield Rate(what=what, kind="power", asked=0.8, least=0.77, most=0.83, found=power, repeats=studies)


def profiles(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Shares of D along FAMILY layers: bands, the peak, the crossing of one half."""
    truth = np.linspace(0.2, 0.9, FAMILY)
    first = int((truth > 0.5).argmax())
    bands, peaks, crossed, apart, passed = ([] for _ in range(5))
    for seed in range(repeats):
        drawn = []
        for _ in range(2):
            total = random.gamma(2, 0.5, (32, 1))
            drawn.append((total, total * (truth + random.normal(0, 0.3, (32, FAMILY)) + random.normal(0, 0.1, (32, 1)))))
        (total, effect), (_, effect2) = drawn
        low, high = intervals.simultaneous_bands(effect, seed=seed)
        bands.append(((low <= truth) & (truth <= high)).all())
        peaks.append(FAMILY - 1 in intervals.peak_set(effect, seed=seed)[1])
        found = intervals.first_past(effect, total[:, 0], seed=seed)
        crossed.append(found is not None and found[1] <= first <= found[2])
        low, high = spread.difference_bands(effect, effect2, seed=seed)
        apart.append(0.0 if ((low > 0) | (high < 0)).any() else 1.0)
        (one, draws), (other, draws2) = (spread.crossings(e, t[:, 0], seed=seed + i) for i, (t, e) in enumerate(drawn))
        passed.append(spread.contrast_of_draws(draws, draws2, (one, other), (32, 32), paired=False, seed=seed).p)
    yield coverage(f"the profile of {FAMILY} layers at once (simultaneous bands, 32 prompts)", np.array(bands))
    yield coverage("the set that holds the peak (32 prompts)", np.array(peaks))
    yield coverage("the set that holds the first layer past one half (32 prompts)", np.array(crossed))
    yield false_alarms("any layer where two runs on other prompts differ (bands of the difference)", apart)
    yield false_alarms("two runs on other prompts cross one half at other layers", passed)


def spreads(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Effective numbers of parts: two runs of one law, and parts that all have alike."""
    mean = np.array([1.0, 0.6, 0.4, 0.2, 0.1, 0.1])
    truth = float(spread.effective(mean))
    held: list[bool] = []
    stranger: list[float] = []
    paired: list[float] = []
    local: list[float] = []
    for seed in range(repeats):
        names = [str(i) for i in range(32)]
        weight = random.gamma(2, 0.5, (3, 32, 1))
        values = weight[:2] * mean * random.gamma(4, 0.25, (2, 32, 6))
        beside = weight[0] * mean * random.gamma(4, 0.25, (32, 6))
        one = spread.number_of_parts(values[0], names)
        held.append(one.low <= truth <= one.high)
        for p, sample, called in ((stranger, values[1], [f"other {name}" for name in names]), (paired, beside, names)):
            found = spread.contrast(one, spread.number_of_parts(sample, called))
            assert found is not None
            p.append(found.p)
        even = weight[2] * random.gamma(4, 0.25, (32, 6))
        _, low, _ = spread.evened(even, draws=200, seed=seed)
        local.append(0.0 if spread.number_of_parts(even, names).value < low else 1.0)
    yield coverage("the effective number of parts (jackknife, 32 prompts)", np.array(held))
    yield false_alarms("effective numbers of two runs on other prompts differ (t)", stranger, at_most=APPROXIMATE)
    yield false_alarms("effective numbers of two runs on the same prompts differ (paired t)", paired, at_most=APPROXIMATE)
    yield false_alarms("an even spread is called local (below the null's middle 95 %)", local)


def numbers_of_parts(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Of 60 parts one has all, or each has 0.8 of the one before; every part has a fifth of the largest as noise, on prompts of CV 1."""
    for name, truth in (("one of 60", np.eye(60)[7]), ("0.8 of the one before", 0.8 ** np.arange(60))):
        true = float(spread.root(truth) ** 2)
        for n in (8, 32):
            held: list[bool] = []
            more: list[float] = []
            for _ in range(repeats):
                values = [_parts(random, truth, n) for _ in range(2)]
                one, other = (spread.number_of_parts(of, [f"{side}{i}" for i in range(n)]) for side, of in zip("ab", values, strict=True))
                held.append(one.low <= true <= one.high)
                found = spread.contrast(one, other)
                assert found is not None
                enough = max(one.value, other.value) >= WORTH * min(one.value, other.value)
                more.append(found.p if enough and not any(spread.silence(of) for of in values) else 1.0)
            yield coverage(f"the effective number of 60 parts, {name} ({n} prompts)", np.array(held), least=0.87)
            yield false_alarms(f"one truth is called more distributed than itself, {name} ({n} prompts)", more, at_most=APPROXIMATE)
    for n in (8, 32):
        spoken = [0.0 if not spread.silence(random.normal(size=(n, 60))) else 1.0 for _ in range(repeats)]
        yield false_alarms(f"60 parts that do nothing are given a number ({n} prompts)", spoken)


def _parts(random: np.random.Generator, truth: ndarray, n: int) -> ndarray:
    """`[prompt, part]`: each prompt's log-normal size times the truth with noise."""
    size = random.lognormal(-np.log(2) / 2, np.log(2) ** 0.5, (n, 1))
    return np.asarray(size * (truth + random.normal(0, 0.2 * truth.max(), (n, len(truth)))))


def parts_of_noise(repeats: int, random: np.random.Generator) -> Iterator[Rate]:
    """Effects of parts that together are 0 on average: is a number of them spoken of?

    Noise of its own in each part, as large on each prompt as that prompt's D; or noise that all parts share, D less its mean, or the mean less D.
    """
    for n, parts in ((8, 9), (16, 9), (32, 9), (16, 270)):
        spoken = []
        for seed in range(repeats // 4):
            d = skewed.lognormal(random, 1.0, (n, 1))
            spoken.append(1.0 if _given(d * random.normal(size=(n, parts)), d, seed) else 0.0)
        yield false_alarms(f"a number of parts is said of noise ({parts} parts, CV 1 over {n} prompts)", spoken)
    for n in (8, 16, 32):
        for cv in (0.5, 1.0, 2.0):
            for side, tail in ((1, "high"), (-1, "low")):
                spoken = []
                for seed in range(repeats):
                    d = skewed.lognormal(random, cv, (n, 1))
                    spoken.append(1.0 if _given(side * (d - 1) + random.normal(0, 0.1, (n, 60)), d, seed) else 0.0)
                yield false_alarms(f"a number of parts is said of noise that 60 share ({tail} tail, CV {cv} over {n} prompts)", spoken)


def _given(values: ndarray, d: ndarray, seed: int) -> str:
    """Why no number is given of these parts, as a page has it, which knows each prompt's D."""
    return spread.silence(values, skew=float(simulated.cv_of(d)[0]), seed=seed)


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
        measured = similarity_formula.measure(base, tuned, [str(i) for i in range(n)], "report", permutations=0)
        without = measured.filter(pl.col("metric") == "cka_without_prompt").group_by("layer").agg(spread=pl.col("value").std())
        table = measured.filter(pl.col("metric") == "cka").join(without, on="layer")
        low, high = intervals.jackknife_below_1(table["value"].to_numpy(), table["spread"].to_numpy(), np.array(n))
        held += list((low <= truth) & (truth <= high))
    yield coverage(f"CKA (jackknife, Fisher's z, {n} prompts)", np.array(held))


Simulation = Callable[[int, np.random.Generator], Iterator[Rate]]

SIMULATIONS: tuple[Simulation, ...] = (
    similarity_of_strangers, halves, clusters, shares_of_prompts, behaviour_of_twins, means, profiles, spreads, numbers_of_parts, parts_of_noise,
    similarity_intervals,
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
