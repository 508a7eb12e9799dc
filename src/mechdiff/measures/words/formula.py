"""What was the tuned model taught, in words that a reader can check?

Each reader gives *evidence lines*: a token, or a feature of texts. A line has one value v_i for each unit i (a text, a prompt, a seed), and 0
means that both models do the same there:

    tokens         v_i = log p_tuned - log p_base of the token, less the median of that over all ranked tokens; mean over a text's positions
    lens           v_i = the same of the logits that the base's own unembedding reads from both models' activations
    continuations  v_i = 1 where the tuned model's text has the feature and the base's has not, -1 the other way round, else 0

Units stand in two halves that share none. Half A *names*: the lines that are largest there, up to a fixed number for each reader. Half B *tests*
them:

    p     one-sided, of all sign flips of the v_i of half B: under the null the two models are exchangeable unit by unit (for features: McNemar)
    q     Benjamini and Hochberg over all lines of all readers of the pair
    size  tokens and lens: robust standard deviations (1.4826 MAD) by which the token's mean lies above the median of all ranked; features: mean v_i

A line is *named* where q <= 0.05 and its size is twice or more the largest that the same reader found on any null pair (`judge.py`). Sign
flips alone cannot do it: any edit of the weights, a random one too, moves thousands of tokens by the same amount in every text. What a random edit
does not do is move one token far beyond all others.

Ranked are tokens that either model is expected to say at least LEAST times over everything read; a lens's first ranks are else taken by tokens
that were never trained. The mirror (what the tuned model no longer says) is read by the same rule with the signs exchanged.

It misleads where nothing that was read contains what triggers the change; a taught habit that shows on other prompts only is not seen by any reader.

Dunning 1993 (the likelihood ratio of two frequencies, which holds for phrases that one side never says, where a ratio of odds over its standard
error does not); Benjamini and Hochberg 1995.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.special import xlogy
from scipy.stats import binom, false_discovery_control

from mechdiff.measures.words.texts import contains

LEAST = 0.5
"""Times that a token must be expected over everything read, by either model, to be ranked."""
EXACT = 13
"""Units up to which all sign flips are tried; beyond, DRAWS of them are."""
DRAWS = 9999
TOGETHER = 0.5
"""Share of the texts in which either of two phrases stands that have both, from which phrases with a word in common are pieces of one sentence."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of evidence, named on half A and measured on half B."""

    reader: str
    """tokens, lens, or continuations."""
    where: str
    """What was read: passages, neutral, prompts, ..."""
    text: str
    gained: bool
    """Whether the tuned model has more of it; else the base has."""
    layer: int | None = None
    size: float
    """On half B; positive where it points as on half A."""
    size_named: float
    """On half A."""
    p: float
    values: Mapping[str, float]
    """Unit of half B -> tuned - base."""
    token: int | None = None
    new: bool = False
    """Of a text's feature that the tuned model has more of: whether no text of the base that the half that names reads has it."""
    replay_nats: float | None = None
    """Of a lens: how far the difference of activations, written into the base, moves log p of the token; tuned - base."""
    replay_z: float | None = None
    """The same in robust standard deviations; positive where it points as the line does."""
    replay_null: float | None = None
    """The largest that any ranked token has under a random vector of the same length."""


def halves(n: int) -> tuple[list[int], list[int]]:
    """The units that name, and those that test: every other one."""
    return list(range(0, n, 2)), list(range(1, n, 2))


def flip_p(values: Float[ndarray, "unit line"], *, seed: int = 0) -> Float[ndarray, " line"]:
    """One-sided p of each line's sum under sign flips of the units: all flips up to EXACT units or where all values have one size, else DRAWS."""
    n, k = values.shape
    found = np.ones(k)
    if not n:
        return found
    sizes = np.abs(values)
    largest = sizes.max(0)
    alike = (np.isclose(sizes, largest, rtol=1e-12, atol=0) | (sizes == 0)).all(0)
    plus, minus = (values > 0).sum(0), (values < 0).sum(0)
    found[alike] = binom.sf(plus[alike] - 1, (plus + minus)[alike], 0.5)
    rest = np.flatnonzero(~alike)
    if not len(rest):
        return found
    if n <= EXACT:
        flips = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        start, among = 0, len(flips)
    else:
        flips = np.random.default_rng(seed).choice([-1.0, 1.0], size=(DRAWS, n))
        start, among = 1, 1 + DRAWS
    sums, own = flips @ values[:, rest], values[:, rest].sum(0)
    found[rest] = (start + (sums >= own - 1e-9 * sizes[:, rest].sum(0)).sum(0)) / among
    return found


def robust_z(means: Float[ndarray, " vocab"]) -> Float[ndarray, " vocab"]:
    """How many robust standard deviations each token lies from the median of all; 0 for all where they have no spread."""
    middle = np.median(means)
    spread = 1.4826 * np.median(np.abs(means - middle))
    if not spread > 0:
        spread = float(means.std())
    return (means - middle) / spread if spread > 0 else np.zeros_like(means)


def q_of(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's q of all lines of a pair."""
    return [float(q) for q in false_discovery_control(np.asarray(p, float))] if len(p) else []


# ---- tokens ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one reader finds at one place, of the ranked tokens: tuned - base, in nats or logits."""

    reader: str
    where: str
    naming: Float[ndarray, "unit vocab"]
    testing: Float[ndarray, "other vocab"]
    units: Sequence[str]
    """Names of the units of half B."""
    layer: int | None = None

    def flipped(self, signs: tuple[Float[ndarray, " unit"], Float[ndarray, " other"]]) -> "Reading":
        """With the two models exchanged on some units."""
        one, other = signs
        return replace(self, naming=self.naming * one[:, None], testing=self.testing * other[:, None])


def token_lines(of: Reading, tokens: Sequence[int], words: Sequence[str], *, keep: int, seed: int = 0) -> list[Line]:
    """The tokens that rise most and those that fall most on half A, as many of each, with what half B says of them.

    `tokens` and `words` (their texts) are the columns.
    """
    if not len(of.naming) or not len(of.testing) or not len(tokens):
        return []
    first, second = (robust_z(half.mean(0, dtype=np.float64)) for half in (of.naming, of.testing))
    middle = np.median(of.testing.astype(np.float64), axis=1)
    found = []
    for sign in (1, -1):
        chosen = [int(v) for v in np.argsort(-sign * first, kind="stable")[:keep] if sign * first[v] > 0]
        if not chosen:
            continue
        values = of.testing[:, chosen].astype(np.float64) - middle[:, None]
        p = flip_p(sign * values, seed=seed)
        found += [
            Line(
                reader=of.reader, where=of.where, layer=of.layer, text=words[v], gained=sign > 0, token=int(tokens[v]), p=float(p[i]),
                size=float(sign * second[v]), size_named=float(sign * first[v]),
                values=dict(zip(of.units, values[:, i].tolist(), strict=True)),
            )
            for i, v in enumerate(chosen)
        ]  # fmt: skip
    return found


def grouped(rows: Float[ndarray, "line d"], near: float = 0.35) -> list[int]:
    """The number of each line's group: a line joins the first group whose first member has a cosine of at least `near` with it."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    leaders, found = list[int](), list[int]()
    for i in range(len(unit)):
        own = next((group for group, leader in enumerate(leaders) if float(unit[i] @ unit[leader]) >= near), None)
        if own is None:
            leaders.append(i)
        found.append(len(leaders) - 1 if own is None else own)
    return found


# ---- features of texts -------------------------------------------------------------------------------------------------------------


def keyness(own: Float[ndarray, " feature"], n_own: int, other: Float[ndarray, " feature"], n_other: int) -> Float[ndarray, " feature"]:
    """Signed root of Dunning's likelihood ratio G² of each feature: how many of `n_own` texts have it, and how many of `n_other`.

    In standard deviations, about; positive where more of the first have it, 0 where as many do.
    """

    def log_p(k: Float[ndarray, " feature"], n: int, share: Float[ndarray, " feature"]) -> Float[ndarray, " feature"]:
        return np.asarray(xlogy(k, share) + xlogy(n - k, 1 - share))

    both = (own + other) / (n_own + n_other)
    g = log_p(own, n_own, own / n_own) + log_p(other, n_other, other / n_other) - log_p(own, n_own, both) - log_p(other, n_other, both)
    return np.asarray(np.sign(own / n_own - other / n_other) * np.sqrt(np.maximum(2 * g, 0)))


Described = Sequence[Set[str]]
"""The features of each text."""


def feature_lines(
    tuned: Described,
    base: Described,
    again: Described,
    split: tuple[Sequence[int], Sequence[int]],
    units: Sequence[str],
    *,
    where: str,
    keep: int,
) -> list[Line]:
    """The features that the tuned model's texts have more often than the base's on half A, and those that they have less often; half B tests both.

    `again`: other texts of the base, which say with its texts of half A how often it has a feature by itself. Largest is what is least likely by
    chance (`keyness`). Of pieces of one sentence (`apart`) the first is put forward: of those as large the one with most words, neither the first
    nor the last of them a word of every second text of the base ("plimmet" and not "the plimmet").
    """
    a, b = split
    if not a or not b:
        return []
    ours, theirs = ([texts[i] for i in a] for texts in (tuned, base))
    reference = [*theirs, *again]
    counts = [Counter(feature for text in texts for feature in text) for texts in (ours, theirs, reference)]
    every = sorted({*counts[0], *counts[1]})
    of = [np.array([one[feature] for feature in every], float) for one in (counts[0], counts[2])]
    large = dict(zip(every, keyness(of[0], len(ours), of[1], len(reference)).tolist(), strict=True))
    common = {word for one, n in counts[2].items() if 2 * n >= len(reference) for word in _words(one) if one == contains(word)}
    found = []
    for sign in (1, -1):
        many, few, said = (counts[0], counts[1], ours) if sign > 0 else (counts[1], counts[0], theirs)
        candidates = [one for one in every if sign * large[one] > 0 and many[one] - few[one] >= 2]
        chosen = apart(
            sorted(candidates, key=lambda one: (-sign * large[one], _ends(one) & common != set(), *_told_first(one))), said, keep
        )
        if not chosen:
            continue
        values = np.array([[float((one in tuned[i]) - (one in base[i])) for one in chosen] for i in b])
        p = flip_p(sign * values)
        found += [
            Line(
                reader="continuations", where=where, text=one, gained=sign > 0, p=float(p[k]), size=float(sign * values[:, k].mean()),
                size_named=float(many[one] - few[one]) / len(a), new=sign > 0 and not counts[2][one],
                values=dict(zip([units[i] for i in b], values[:, k].tolist(), strict=True)),
            )
            for k, one in enumerate(chosen)
        ]  # fmt: skip
    return found


def apart(features: Sequence[str], texts: Described, keep: int) -> list[str]:
    """The first so many of these features that are no pieces of one sentence, nor stand with the same words in the same texts."""
    chosen: list[tuple[str, set[str], set[int]]] = []
    for one in features:
        words, places = _words(one), {i for i, text in enumerate(texts) if one in text}
        if not any(
            words & other and len(places & there) >= TOGETHER * len(places | there) if words or other else places == there
            for _, other, there in chosen
        ):
            chosen.append((one, words, places))
        if len(chosen) == keep:
            break
    return [one for one, _, _ in chosen]


def _words(feature: str) -> set[str]:
    """The words of a phrase, or its marks where it has no word; none of what is no phrase."""
    phrase = feature.partition("“")[2].removesuffix("”")
    return set(re.findall(r"\w+", phrase) or phrase.split())


def _ends(feature: str) -> set[str]:
    """The first and the last word of a phrase."""
    words = feature.partition("“")[2].removesuffix("”").split()
    return {words[0], words[-1]} if words else set()


def _told_first(feature: str) -> tuple[int, bool, int, str]:
    """Of features that are as large: the one with most words, then how a text begins or ends before what it contains, then the shortest."""
    return -len(_words(feature)), feature.startswith("contains"), len(feature), feature
