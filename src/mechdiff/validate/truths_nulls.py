"""Truths of chance: where there is nothing to find, tests find it no more often than they say, and intervals hold the truth (METHOD C: P20).

The short version: `make validate-long` takes every test that is reported.
"""

from collections.abc import Iterator

import numpy as np
import torch

from mechdiff.engine.sites import Site
from mechdiff.measures import similarity
from mechdiff.report import intervals
from mechdiff.report.nulls import permutation_p
from mechdiff.validate import planted
from mechdiff.validate.checks import Check, at_most, near
from mechdiff.validate.planted import Bench

LEVEL, REPEATS = 0.05, 1000
LIMIT = LEVEL + 2 * (LEVEL * (1 - LEVEL) / REPEATS) ** 0.5
"""Two standard errors of a share of 5 % in so many repeats."""
CV, PROMPTS = 3.5, 150


def p20(bench: Bench) -> Iterator[Check]:
    """Null pairs: other prompts for each model, exchanged labels, values of a known mean."""
    pair = bench.plant(planted.edit_attention, n_prompts=100)
    states = {side: pair.states(side, "resid_post")[2] for side in ("base", "tuned")}
    random = np.random.default_rng(0)
    found = []
    for seed in range(REPEATS):
        mixed = random.permutation(100)
        one, other = torch.from_numpy(mixed[:20]), torch.from_numpy(mixed[20:40])
        site = Site(2, "resid_post")
        rows = similarity.measure({site: states["base"][one]}, {site: states["tuned"][other]}, [str(i) for i in range(20)], "report",
                                  permutations=99, seed=seed)  # fmt: skip
        found.append(permutation_p(rows.filter(rows["metric"] == "cka"))["p"].item() <= LEVEL)
    yield at_most("CKA called alike, p <= 0.05, where each model reads other prompts", np.mean(found), LIMIT)

    difference = (pair.breakage("resid_post") - pair.breakage("attn_out")).numpy()
    p = [intervals.sign_flip_max_t(difference[random.permutation(100)[:24]] * random.choice([-1, 1], (24, 1)), seed=seed).min()
         for seed in range(REPEATS)]  # fmt: skip
    yield at_most(
        "any of 4 blocks called different, family-wise p <= 0.05, labels exchanged at random", np.mean(np.array(p) <= LEVEL), LIMIT
    )

    spread = np.sqrt(np.log1p(CV**2))
    values = np.random.default_rng(1).lognormal(-(spread**2) / 2, spread, (PROMPTS, 2000))
    _, low, high = intervals.geometric(values)
    truth = np.exp(-(spread**2) / 2)
    held = np.mean((low <= truth) & (high >= truth))
    yield near("coverage of the log-t interval at CV 3.5, 150 prompts, 2,000 repeats", held, 0.95, 0.02)
    low, high = intervals.bca_means(values)
    yield near("coverage of the BCa interval of the mean there: short, and said to be", np.mean((low <= 1) & (high >= 1)), 0.89, 0.03)
