"""In which texts do the two models part? What is found on one half of the texts is tested on the other; copies of a text count once.

A text is described by what is in it: words, marks and pairs of them (digits are one word, `0`), and the domain that its words put it into. Texts
go into two halves by what they are; near copies (a Jaccard similarity of their five-character pieces of 0.5 or more, by MinHash) are one cluster,
and a cluster is in one half. On the half where things are found:

- domains: TF-IDF of words, reduced to 32 dimensions (LSA), k-means; every text of both halves is put into the nearest;
- of each text the change of its loss, and of its log KL what the base's own loss does not predict (the residual of a linear fit): an unsure base is
  moved further by anything;
- features whose texts have most of it (Welch's t), those that stand in the same texts as one.

**Confirmed** is a feature if on the other half, with the same fit, the clusters with it lie above those without it: p <= 0.05 by Welch's t test,
one-sided, corrected over all that were tested for either number (Holm), and an effect whose 95 % interval lies beyond LEAST: 1.5 times the KL, or
0.02 nats a token of loss, by which the loss of these texts must have changed by itself, too. So of a copy nothing is. Features are listed by their
effect on the half where they were found: by the other half's, the first one's would be too large.

Beside the effect on KL stands the raw one, without the fit: a feature whose texts have less KL than others can have more than their loss predicts.

When it misleads: a feature marks texts and need not be the cause; what stands in less than five texts of a half cannot be confirmed. A random edit
too moves some kinds of text more than others: that is a finding about the edit, true, and no sign of training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_matrix, hstack
from scipy.stats import t as student

from mechdiff.curate.copies import RELATED, pieces
from mechdiff.statistics.intervals import holm, mean_intervals

SURE = 0.05
LEAST = {"kl": float(np.log(1.5)), "loss": 0.02}
"""Of an effect: of log KL, and of the loss in nats a token."""
TESTED, FEWEST, WORDS = 10, 5, 20_000
"""Features that are tested, texts that have one at least, and features that are looked at."""
ROUNDING = 1e-6
"""Nats of KL that are rounding."""
DOMAINS = 8
WORD = r"[^\W\d_]+|\d|[^\w\s]"
"""A word, a digit, or a mark."""
Score = Literal["kl", "loss"]
SCORES: tuple[Score, ...] = ("kl", "loss")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Texts with their numbers."""

    texts: Sequence[str]
    kl: Float[ndarray, " text"]
    """Mean KL(tuned || base), nats."""
    loss_base: Float[ndarray, " text"]
    loss_change: Float[ndarray, " text"]
    clusters: Int[ndarray, " text"]
    found: Bool[ndarray, " text"]
    """In the half where things are found."""

    @property
    def log_kl(self) -> Float[ndarray, " text"]:
        return np.log(np.maximum(self.kl, ROUNDING))

    def residual(self, score: Score) -> Float[ndarray, " text"]:
        """The change of the loss; or what the base's loss does not predict of log KL, by a fit on the half where things are found."""
        if score == "loss":
            return self.loss_change
        y = self.log_kl
        x = np.stack([np.ones_like(y), self.loss_base], 1)
        fit, *_ = np.linalg.lstsq(x[self.found], y[self.found], rcond=None)
        return y - x @ fit

    def varies(self, score: Score) -> bool:
        return bool((self.kl > 10 * ROUNDING).any() if score == "kl" else (np.abs(self.loss_change) > 10 * ROUNDING).any())


def near_copies(texts: Sequence[str], *, seed: int = 0) -> Int[ndarray, " text"]:
    """A cluster for each text, named by its first one."""
    from datasketch import MinHash, MinHashLSH

    index, parent = MinHashLSH(threshold=RELATED - 0.1, num_perm=128), list(range(len(texts)))
    hashes: list[MinHash] = []

    def first(one: int) -> int:
        while parent[one] != one:
            one = parent[one]
        return one

    for number, text in enumerate(texts):
        own = MinHash(num_perm=128, seed=seed)
        own.update_batch([piece.encode() for piece in pieces(text)])
        for other in index.query(own):
            if hashes[other].jaccard(own) >= RELATED:
                low, high = sorted((first(other), first(number)))
                parent[high] = low
        index.insert(number, own)
        hashes.append(own)
    return np.array([first(number) for number in range(len(texts))])


# ---- domains -----------------------------------------------------------------------------------------------------------------------


def domains(sample: Sample, *, most: int = DOMAINS, seed: int = 0) -> tuple[Int[ndarray, " text"], list[str]]:
    """The domain of each text, and each domain's name: the words that mark it."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import pairwise_distances_argmin
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    fitted_on = [text for text, here in zip(sample.texts, sample.found, strict=True) if here]
    most = min(most, len(fitted_on) // (2 * FEWEST))
    words = TfidfVectorizer(token_pattern=WORD, min_df=2, max_df=0.9, max_features=WORDS, sublinear_tf=True, preprocessor=_folded)
    try:
        table = words.fit_transform(fitted_on)
    except ValueError:  # no word is left: all texts have one word, or none in common
        return np.zeros(len(sample.texts), int), ["all"]
    if most < 2 or table.shape[1] < 3:
        return np.zeros(len(sample.texts), int), ["all"]
    reduced = make_pipeline(TruncatedSVD(min(32, table.shape[1] - 1), random_state=seed), Normalizer())
    places = reduced.fit_transform(table)
    k = min(most, len(np.unique(places.round(6), axis=0)))  # a text that stands there again and again is one place
    means = KMeans(k, n_init=4, random_state=seed).fit(places)
    held = np.unique(means.labels_)
    if len(held) < 2:
        return np.zeros(len(sample.texts), int), ["all"]
    labels = pairwise_distances_argmin(reduced.transform(words.transform(sample.texts)), means.cluster_centers_[held])
    names = words.get_feature_names_out()
    profile = np.stack([np.asarray(table[means.labels_ == one].mean(0))[0] for one in held])
    apart = profile - profile.mean(0)
    return labels, [", ".join(names[np.argsort(-one, kind="stable")[:4]]) for one in apart]


def _folded(text: str) -> str:
    import regex

    return regex.sub(r"\d+", "0", text.casefold())


def by_domain(sample: Sample, labels: Int[ndarray, " text"], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each domain the mean KL and loss change with intervals over clusters of near copies, the largest KL first."""
    lines = []
    for one, name in enumerate(names):
        here = labels == one
        line: dict[str, Any] = {"domain": name, "texts": int(here.sum())}
        for score, values in (("kl", sample.kl), ("loss_change", sample.loss_change), ("loss_base", sample.loss_base)):
            means = _of_clusters(values[here], sample.clusters[here])
            low, high = mean_intervals(means[:, None]) if len(means) else (np.array([np.nan]),) * 2
            line |= {
                score: float(means.mean()) if len(means) else float("nan"),
                f"{score}_low": float(low[0]),
                f"{score}_high": float(high[0]),
            }
        lines.append(line | {"clusters": len(np.unique(sample.clusters[here]))})
    return sorted((line for line in lines if line["texts"]), key=lambda line: -line["kl"])


def _of_clusters(values: Float[ndarray, " text"], clusters: Int[ndarray, " text"]) -> Float[ndarray, " cluster"]:
    """The mean of each cluster."""
    _, where = np.unique(clusters, return_inverse=True)
    return np.bincount(where, values) / np.bincount(where)


# ---- features ----------------------------------------------------------------------------------------------------------------------


def features(sample: Sample, labels: Int[ndarray, " text"], domain_names: Sequence[str]) -> list[dict[str, Any]]:
    """What marks texts with a large KL or loss change on one half, each with its test on the other; the confirmed ones first."""
    from sklearn.feature_extraction.text import CountVectorizer

    fitted_on = [text for text, here in zip(sample.texts, sample.found, strict=True) if here]
    words = CountVectorizer(token_pattern=WORD, ngram_range=(1, 2), binary=True, min_df=FEWEST, max_features=WORDS, preprocessor=_folded)
    try:
        table = csr_matrix(words.fit(fitted_on).transform(sample.texts), dtype=float)
        names = [f"“{name}”" for name in words.get_feature_names_out()]
    except ValueError:  # nothing stands in five texts
        table, names = csr_matrix((len(sample.texts), 0)), []
    marks = csr_matrix((labels[:, None] == np.arange(len(domain_names))).astype(float))
    names += [f"domain: {name}" for name in domain_names]
    table = csr_matrix(hstack([table, marks]))
    lines = [line for score in SCORES if sample.varies(score) for line in _tested(sample, table, names, score)]
    for line, p in zip(lines, holm(np.array([line["p"] for line in lines], float)).tolist(), strict=True):
        beyond = (line["low"] if line["sign"] > 0 else -line["high"]) > LEAST[line["score"]]
        line |= {"p_holm": p, "confirmed": bool(line.pop("itself") and p <= SURE and beyond)}
    return sorted(lines, key=lambda line: (not line["confirmed"], line["score"], -abs(line["effect_found"])))


def marking(confirmed: Sequence[Mapping[str, Any]], score: str, text: str) -> list[str]:
    """The confirmed words and pairs that stand in a text."""
    import regex

    words = regex.findall(WORD, _folded(text))
    there = {*words, *(f"{one} {other}" for one, other in pairwise(words))}
    return [one["feature"] for one in confirmed if one["score"] == score and one["feature"].strip("“”") in there]


def _tested(sample: Sample, table: csr_matrix, names: Sequence[str], score: Score) -> list[dict[str, Any]]:
    residual = sample.residual(score)
    chosen = _chosen(csr_matrix(table[sample.found]), residual[sample.found], both_ways=score == "loss")
    here = ~sample.found
    lines = []
    for column in chosen:
        has = table[:, column].toarray()[:, 0] > 0
        effect_found = float(residual[sample.found & has].mean() - residual[sample.found & ~has].mean())
        up = float(np.sign(effect_found))
        with_it, without = (_of_clusters(residual[here & side], sample.clusters[here & side]) for side in (has, ~has))
        line: dict[str, Any] = {
            "feature": names[column],
            "score": score,
            "texts": int((here & has).sum()),
            "texts_found_on": int((sample.found & has).sum()),
            "effect_found": effect_found,
        }
        if score == "kl":
            own, others = (_of_clusters(sample.log_kl[here & side], sample.clusters[here & side]) for side in (has, ~has))
            raw = _welch(own, others, up)
            line |= {f"raw{end}": raw[name] for end, name in (("", "effect"), ("_low", "low"), ("_high", "high"))}
        lines.append(line | _welch(with_it, without, up) | {"itself": score == "kl" or _moved(with_it, up, LEAST[score])})
    return lines


def _chosen(table: csr_matrix, residual: Float[ndarray, " text"], *, both_ways: bool) -> list[int]:
    """The features whose texts lie furthest from the others, those of the same texts once."""
    n, with_it = len(residual), np.asarray(table.sum(0))[0]
    without = n - with_it
    sums, squares = table.T @ residual, table.T @ residual**2
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / with_it, (residual.sum() - sums) / without
        spreads = squares / with_it - means[0] ** 2, ((residual**2).sum() - squares) / without - means[1] ** 2
        t = (means[0] - means[1]) / np.sqrt(np.maximum(spreads[0], 1e-12) / with_it + np.maximum(spreads[1], 1e-12) / without)
    t = np.where((with_it >= FEWEST) & (without >= FEWEST), np.abs(t) if both_ways else t, -np.inf)
    chosen: list[int] = []
    taken: list[set[int]] = []
    for column in np.argsort(-t, kind="stable"):
        if len(chosen) == TESTED or not t[column] > 0:
            break
        texts = set(table[:, [column]].nonzero()[0].tolist())
        if all(len(texts & other) < RELATED * len(texts | other) for other in taken):
            chosen.append(int(column))
            taken.append(texts)
    return chosen


def _moved(values: Float[ndarray, " cluster"], sign: float, least: float) -> bool:
    """Whether the mean by itself, beside no others, lies beyond `least` by its 95 % interval."""
    if len(values) < FEWEST:
        return False
    low, high = mean_intervals(values[:, None])
    return bool((low[0] if sign > 0 else -high[0]) > least)


def _welch(one: Float[ndarray, " cluster"], other: Float[ndarray, " cluster"], sign: float) -> dict[str, float]:
    """The difference of two means, its 95 % interval, and p of its sign; NaN with too few clusters."""
    if min(len(one), len(other)) < FEWEST:
        return {"effect": float("nan"), "low": float("nan"), "high": float("nan"), "p": float("nan"), "sign": sign}
    parts = np.array([one.var(ddof=1) / len(one), other.var(ddof=1) / len(other)])
    error, difference = max(float(np.sqrt(parts.sum())), 1e-12), float(one.mean() - other.mean())
    freedom = parts.sum() ** 2 / max(float((parts**2 / [len(one) - 1, len(other) - 1]).sum()), 1e-300)
    half = float(student.ppf(0.975, max(freedom, 1.0))) * error
    p = float(student.sf(sign * difference / error, max(freedom, 1.0)))
    return {"effect": difference, "low": difference - half, "high": difference + half, "p": p, "sign": sign}
