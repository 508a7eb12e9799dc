"""Simulated studies of profiles along layers and of effective numbers of parts, whose truth is known."""

from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from mechdiff.comparison.contrasts import WORTH
from mechdiff.statistics import intervals, simulated, spread
from mechdiff.validate import skewed
from mechdiff.validate.rates import APPROXIMATE, FAMILY, Rate, coverage, false_alarms


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
