"""A run's tables come tidy: one row a thing that was measured, its place in columns, its effect with an interval.

Each is what a section of the page draws. A measure without a table of its own gives its lines of summary.parquet, without columns that say nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import polars as pl

from mechdiff.errors import RunError
from mechdiff.labels import CROSSED
from mechdiff.measures.catalogue import CHAPTERS
from mechdiff.measures.grafting import findings as grafting
from mechdiff.measures.heads import findings as heads
from mechdiff.measures.panel import findings as panel
from mechdiff.measures.patching import findings as patching
from mechdiff.measures.similarity import findings as similarity
from mechdiff.measures.steering import findings as steering
from mechdiff.measures.weights import findings as weights
from mechdiff.measures.words.page import lens_of
from mechdiff.report import difference
from mechdiff.report.overview.overview import parting
from mechdiff.report.parts import Run

NECESSARY, RECOVERED = CROSSED
"""Base activations in the tuned model, and tuned ones in the base."""
EFFECT = ("direction", "effect", "low", "high", "n", "nats", "counts")
"""`effect`: share of KL(tuned || base), 0 to 1; `counts`: over the numerical noise."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a run."""

    says: str
    """What a row is."""
    made: Callable[[Run], pl.DataFrame]


def _columns(found: pl.DataFrame, *wanted: str) -> pl.DataFrame:
    """Those of the columns that are there, under the names that a reader knows."""
    told = {"site": "component", "share": "effect"}
    named = found.rename({old: new for old, new in told.items() if old in found.columns and new not in found.columns})
    return named.select(name for name in wanted if name in named.columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def answers(run: Run) -> pl.DataFrame:
    """`prompt asked base tuned words_alike kl_nats`: both models' whole answers, those that differ most at the next token first.

    `words_alike`: words before the first that differs.
    """
    said = next((found for chapter in CHAPTERS.values() if (found := chapter.answers(run))), [])
    kl = dict(_divergence(run).select("prompt", "kl_nats").iter_rows())
    lines = [
        (one.prompt, one.asked, one.base, one.tuned, len(one.base[: parting(one.base, one.tuned)[0]].split()), kl.get(one.prompt))
        for one in said
    ]
    schema = {
        "prompt": pl.String,
        "asked": pl.String,
        "base": pl.String,
        "tuned": pl.String,
        "words_alike": pl.Int64,
        "kl_nats": pl.Float64,
    }
    return pl.DataFrame(lines, schema=schema, orient="row").sort("kl_nats", descending=True, nulls_last=True, maintain_order=True)


def _divergence(run: Run) -> pl.DataFrame:
    return difference.d_per_prompt(run.prompt_rows).rename({"d": "kl_nats", "same": "same_token"}).sort("kl_nats", descending=True)


def _heads(run: Run) -> pl.DataFrame:
    found = heads.map_of_heads(run.rows, run.summary).filter(pl.col("head").is_not_null(), pl.col("arm") == "contribution")
    return _columns(found.with_columns(name=pl.format("L{}H{}", "layer", "head")), "name", "layer", "head", *EFFECT)


def _patching(run: Run) -> pl.DataFrame:
    of = difference.difference(run.rows, run.summary)
    found = patching.site_shares(run.rows, run.summary).with_columns(
        name=difference.site_name(), n=pl.lit(of.n if of else None, dtype=pl.Int64)
    )
    return _columns(found, "name", "layer", "component", *EFFECT)


def _grafting(run: Run) -> pl.DataFrame:
    return _columns(grafting.shares(run.rows, "alone"), "name", "layer", "component", *EFFECT)


def _weights(run: Run) -> pl.DataFrame:
    found = weights.tensors(run.summary).rename({"unit": "name"})
    return _columns(found, "name", "layer", "component", *(name for name in found.columns if name not in ("name", "layer", "site")))


def _similarity(run: Run) -> pl.DataFrame:
    return _columns(similarity.similarity_by_site(run.rows, run.summary), "name", "layer", "component", "cka", "low", "high", "n", "p", "q")


def _steering(run: Run) -> pl.DataFrame:
    found = steering.effects(run.rows).filter(pl.col("control").is_null())
    return _columns(found, "name", "layer", "component", "edit", "rank", "strength", "everywhere", *EFFECT)


TABLES: dict[str, Table] = {
    "answers": Table(says="a test prompt, with both models' answers", made=answers),
    "divergence": Table(says="a test prompt: KL(tuned || base) of the next token", made=_divergence),
    "panel": Table(says="a group of unrelated texts: KL and top-1 agreement", made=lambda run: panel.groups(run.summary)),
    "weights": Table(says="a tensor: how far it moved, and the rank and spectrum of its change", made=_weights),
    "grafting": Table(says="a module: what its tuned weights alone recover in the base", made=_grafting),
    "similarity": Table(says="an activation: CKA of the two models", made=_similarity),
    "patching": Table(says="an activation patched from one model into the other", made=_patching),
    "heads": Table(says="a head's output swapped between the models", made=_heads),
    "steering": Table(says="an edit along the change's directions", made=_steering),
}


def names(run: Run) -> dict[str, str]:
    """The tables that this run has, and what a row of each is."""
    measured = [name for name in CHAPTERS if name in set(run.summary["measure"].unique())]
    own = {name: one.says for name, one in TABLES.items() if name in measured or name == "answers"}
    return own | {name: "a line of summary.parquet" for name in measured if name not in own}


def table(run: Run, name: str) -> pl.DataFrame:
    """One of `names`. Raises RunError for another."""
    known = names(run)
    if name not in known:
        raise RunError(f"no table is called {name!r} in this run. There are: {', '.join(known)}.")
    if name in TABLES:
        return TABLES[name].made(run)
    found = run.summary.filter(pl.col("measure") == name).drop("measure").rename({"ci_low": "low", "ci_high": "high", "site": "component"})
    return found.select(column for column in found.columns if found[column].null_count() < len(found))


# ---- the strongest -----------------------------------------------------------------------------------------------------------------

TOP: Mapping[str, tuple[str, str, pl.Expr]] = {
    "heads": ("heads", "effect", pl.col("direction") == RECOVERED),
    "outputs": ("patching", "effect", (pl.col("direction") == RECOVERED) & ~pl.col("component").str.starts_with("resid")),
    "modules": ("grafting", "effect", pl.lit(True)),
    "matrices": ("weights", "relative_norm", pl.lit(True)),
    "prompts": ("divergence", "kl_nats", pl.lit(True)),
}
"""What can be ranked: its table, by which column, and which of its lines."""


def top(run: Run, what: str, n: int) -> pl.DataFrame:
    """The `n` largest. Raises RunError where they were not measured."""
    if what not in TOP:
        raise RunError(f"top: given {what!r}, expected one of {', '.join(TOP)}.")
    name, by, which = TOP[what]
    if name not in names(run):
        raise RunError(f"top {what!r}: this run has no {name}. Run it again with measures=[{name!r}, ...].")
    found = table(run, name).filter(which, pl.col(by).is_not_null(), pl.col(by).is_not_nan())
    if "counts" in found.columns:
        found = found.filter("counts").drop("counts")
    return found.sort(pl.col(by).abs(), descending=True, maintain_order=True).head(n)


# ---- tokens and layers -------------------------------------------------------------------------------------------------------------


def tokens(run: Run, prompt: int | str) -> pl.DataFrame:
    """`position token kl_nats base tuned part`: a text token by token. Raises RunError where it was not read."""
    texts = [text for text in run.manifest.get("texts") or [] if text.get("tokens")]
    if not texts:
        raise RunError("tokens: this run has no text token by token. Run it again with divergence among its measures.")
    text = texts[_which(prompt, [one["prompt"] for one in texts], "tokens")]
    cut = text["n_prompt_tokens"]
    lines = [
        (at, one["text"], one["kl"], one["top_base"], one["top_tuned"], "prompt" if at < cut else "answer")
        for at, one in enumerate(text["tokens"])
    ]
    schema = {"position": pl.Int64, "token": pl.String, "kl_nats": pl.Float64, "base": pl.String, "tuned": pl.String, "part": pl.String}
    return pl.DataFrame(lines, schema=schema, orient="row")


def logit_lens(run: Run, prompt: int | str) -> pl.DataFrame:
    """`layer base tuned base_kl_nats tuned_kl_nats`: what each layer reads at the last token of a prompt. Raises RunError where it was not read."""
    read = next((found for where in ("prompts", "neutral") if (found := lens_of(run.manifest, where))), None)
    if read is None:
        raise RunError("logit_lens: this run did not read its layers. Run it again with words among its measures.")
    at = _which(prompt, read["prompts"], "logit_lens")
    return pl.DataFrame(
        {
            "layer": range(len(read["base"]["tops"])),
            **{side: [layer[at] for layer in read[side]["tops"]] for side in ("base", "tuned")},
            **{f"{side}_kl_nats": read[side]["kl_nats"] for side in ("base", "tuned")},
        }
    )


def _which(prompt: int | str, there: list[str], what: str) -> int:
    """The place of a prompt in a list, by its number or by its name."""
    if isinstance(prompt, str) and prompt in there:
        return there.index(prompt)
    if isinstance(prompt, int) and -len(there) <= prompt < len(there):
        return prompt
    raise RunError(f"{what}: given prompt {prompt!r}, expected a number under {len(there)}, or one of {', '.join(map(repr, there))}.")
