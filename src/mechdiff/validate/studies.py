"""Whole studies are held against truths: planted pairs on disk, every measure, as a user runs them (METHOD C: P0, P1, P2, P6, P7)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import AddedToken
from torch import nn

from mechdiff import labels
from mechdiff.architectures.network import quiet
from mechdiff.engine.distributions import kl_nats
from mechdiff.labels import BASE_INTO_TUNED, TUNED_INTO_BASE
from mechdiff.measures.catalogue import CHAPTERS, EXPERIMENTS, NUMBERS, make_study
from mechdiff.measures.grafting import findings as grafts
from mechdiff.measures.self_repair import findings as self_repair
from mechdiff.report.parts import Run
from mechdiff.report.verdict import verdict
from mechdiff.rows import where
from mechdiff.statistics.summary import summarise
from mechdiff.store.run_folder import RunFolder
from mechdiff.study.config import RunOptions, study_yaml
from mechdiff.study.prepare import prepare
from mechdiff.study.run import execute
from mechdiff.validate import edits, made, planted
from mechdiff.validate.checks import Check, above, at_most, names, near, same
from mechdiff.validate.edits import Net
from mechdiff.validate.planted import Bench

TEXTS = [f"Say something about the number {number * 7919 % 1000}{'!' * (number % 5)}" for number in range(24)]
MEASURES: list[Any] = [{name: dict(one.few)} for name, one in EXPERIMENTS.items()]
"""Every measure, with few draws."""


@dataclass(frozen=True, kw_only=True)
class Studied:
    """What a study of a planted pair found."""

    rows: pl.DataFrame
    summary: pl.DataFrame
    record: dict[str, Any]

    @property
    def verdict(self) -> list[str]:
        return verdict(Run(rows=self.rows, summary=self.summary, manifest=self.record), CHAPTERS)

    def values(self, metric: str, **columns: Any) -> np.ndarray:
        """Of the rows that are no controls."""
        return where(self.rows, metric=metric, control=None, **columns)["value"].to_numpy()


@contextmanager
def study(
    base: Net, tuned: Net, *, tokenizers: Sequence[Any] = (), measures: Sequence[Any] = MEASURES, texts: Sequence[str] = TEXTS,
    policy: str = "same_text",
) -> Iterator[Studied]:  # fmt: skip
    """The study of two networks with byte tokenizers (or others) on some prompts, in a folder of its own."""
    with TemporaryDirectory() as place, quiet():
        folder = Path(place)
        cut = tokenizers or [made.byte_tokenizer(made.CHATML)] * 2
        for name, net, tokenizer in (("base", base, cut[0]), ("tuned", tuned, cut[1])):
            made.save(net, tokenizer, folder / name)
        lines = [json.dumps({"id": f"p{i}", "text": text}) for i, text in enumerate(texts)]
        (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
        pair = {"base": str(folder / "base"), "tuned": str(folder / "tuned")}
        config = make_study(
            {"pair": pair, "prompts": {"file": str(folder / "prompts.jsonl"), "policy": policy}, "measures": list(measures)}
        )
        prepared = prepare(config, RunOptions(threads=torch.get_num_threads()), EXPERIMENTS)
        with RunFolder.open(folder / "run", config_hash=prepared.config_hash, study_text=study_yaml(config)) as run:
            rows, record = execute(prepared, run)
        yield Studied(rows=rows, summary=summarise(rows, NUMBERS), record=record)


def p0(bench: Bench) -> Iterator[Check]:
    """The same model twice, by a whole study."""
    with study(bench.net, bench.net) as found:
        dense = {name for name, one in EXPERIMENTS.items() if not one.routers}
        crossed = {one["what"] for one in found.record["skipped"] if "print the same text" in one["why"]}
        yield same("measures of a dense model that did not run", dense - crossed - set(found.rows["measure"]), set())
        yield at_most("D in nats", found.values("kl_tuned_base_nats"), 0)
        floor = found.rows.filter(pl.col("metric").is_in(["kl_own_nats", "kl_other_nats"]), pl.col("control").is_null())
        real = floor.filter(pl.col("measure").is_in(["patching", "heads", "factorial"]), ~pl.col("arm").is_in(["mean", "resample"]))
        yield at_most("KL of any patch, swap or crossing in nats, conditions mean and resample apart", real["value"].to_numpy(), 1e-10)
        yield same("shares of D that are given", int(found.summary["share"].is_not_null().sum()), 0)
        yield same("the verdict opens", found.verdict[0][:32], "There is no effect to explain: D")
        yield same("it says that the weights are the same", "these are the same weights" in " ".join(found.verdict), True)
        yield at_most("changes of weights", found.values("relative_norm"), 0)


def p1(bench: Bench) -> Iterator[Check]:
    """The residual stream in another basis, by a whole study."""
    base = planted.edited(bench.net, edits.fold_norms)
    measures = ["divergence", "weights", {"patching": {"sites": ["resid_post"], "arms": ["identity", "mean"]}}]
    with study(base, planted.edited(base, edits.rotate), measures=measures) as found:
        said = " ".join(found.verdict)
        yield same(
            'the verdict says "no effect" and "reparametrised"', ["There is no effect" in said, "reparametrised" in said], [True, True]
        )
        yield same("shares of D that are given", int(found.summary["share"].is_not_null().sum()), 0)


def p2(bench: Bench) -> Iterator[Check]:
    """Rank 2 added to one block's attention output matrix, by a whole study."""
    with study(bench.net, planted.edited(bench.net, edits.edit_attention)) as found:
        said = " ".join(found.verdict)
        yield same("the verdict names the tensor and its rank", "L1.self_attn.o_proj" in said and "rank 2" in said, True)
        yield same(
            "the verdict names the module that is enough for D",
            "the tuned weights of L1.attn, the one module that changed, bring the base 100.0 %" in said,
            True,
        )
        needed = grafts.needed(found.rows)
        assert needed
        yield same("the smallest set of modules with 90 % of D", names(labels.set_of(needed.row["unit"])), {"L1.attn"})
        yield near("share of D that it recovers", needed.row["share"], 1, 1e-6)
        yield same(
            "the strongest output, chosen on the select split", "strongest output: L1.attn_out (selected on other prompts)" in said, True
        )
        yield same("rank of the change there", found.values("rank_chosen", layer=1, site="attn_out", unit=None).tolist(), [2.0])
        early = found.rows.filter(pl.col("metric") == "kl_own_nats", pl.col("measure") == "patching", pl.col("layer") == 0)
        early = early.filter(pl.col("arm") == "identity", pl.col("site") != "resid_post_last", pl.col("control").is_null())
        yield at_most("KL increase by any activation of the block below in nats", early["value"].to_numpy(), 1e-10)


def p6(bench: Bench) -> Iterator[Check]:
    """32 new tokens, and nothing else."""
    grown = made.byte_tokenizer(made.CHATML)
    grown.add_tokens([AddedToken(f"\u0644{i}", normalized=False) for i in range(32)])
    tuned = planted.edited(bench.net, lambda net: with_rows(net, torch.tensor([*range(259), *[-1] * 32])))
    measures = ["divergence", {"similarity": {"permutations": 0}}, {"patching": {"sites": ["resid_post"], "arms": ["identity"]}}]
    with study(bench.net, tuned, tokenizers=[made.byte_tokenizer(made.CHATML), grown], measures=measures) as found:
        plain = {"unit": None}
        yield at_most("KL on the shared tokens in nats", found.values("kl_shared_nats", **plain), 1e-12)
        m = found.values("mass_outside", **plain)
        yield above("mass m of the new tokens", m, 1e-4)
        yield near("KL(base || tuned) + log(1 - m)", found.values("kl_base_tuned_nats", **plain) + np.log1p(-m), 0, 1e-9)
        yield same("KL(tuned || base) is infinite", bool(np.isinf(found.values("kl_tuned_base_nats", **plain)).all()), True)
        d = found.summary.filter(pl.col("metric") == "kl_tuned_base_nats", pl.col("unit").is_null())
        yield same("an infinite D is flagged", all("infinite" in flag for flag in d["flag"]), True)
        yield near("CKA, every block", found.values("cka", **plain), 1, 1e-12)


def p7(bench: Bench) -> Iterator[Check]:
    """The same edit twice, once with all token ids permuted."""
    order = torch.randperm(259, generator=edits.generator(0))
    edited = planted.edited(bench.net, edits.edit_attention)
    renamed = planted.edited(edited, lambda net: with_rows(net, order))
    cut = [made.byte_tokenizer(made.CHATML), made.byte_tokenizer(made.CHATML, order=order.tolist())]
    measures = ["divergence", {"similarity": {"permutations": 0}}, {"patching": {"sites": ["resid_post", "attn_out"]}}]
    with study(bench.net, edited, measures=measures) as plain, study(bench.net, renamed, tokenizers=cut, measures=measures) as permuted:
        key = [name for name in plain.rows.columns if name != "value"]
        both = plain.rows.join(permuted.rows, on=key, how="full", nulls_equal=True, suffix="_permuted", coalesce=True)
        yield same("rows that only one has", both["value"].null_count() + both["value_permuted"].null_count(), 0)
        here, there = both["value"].to_numpy(), both["value_permuted"].to_numpy()
        unequal = ~((here == there) | (np.isnan(here) & np.isnan(there)))
        yield at_most("difference of any number, relative", np.where(unequal, np.abs(here - there) / (1 + np.abs(here)), 0), 2e-5)
    new_id = torch.argsort(order)
    laws = [
        net(ids[None]).logits[0, -1].detach()
        for ids in map(torch.tensor, bench.prompts[:4])
        for net, ids in ((edited, ids), (renamed, new_id[ids]))
    ]
    yield above(
        "D by ids instead of bytes, of one model under two names of its tokens, nats",
        kl_nats(torch.stack(laws[::2]), torch.stack(laws[1::2])),
        1,
    )


def p26(bench: Bench) -> Iterator[Check]:
    """A constant that block 0's MLP writes and block 1 takes half away from, in a network made for it."""
    base = made.halving_net()
    with study(base, planted.edited(base, made.write_for_halving), measures=["divergence", {"self_repair": {"closer": [0, 2]}}]) as found:
        yield from p26_of(found.rows)


def p26_of(rows: pl.DataFrame) -> Iterator[Check]:
    """What its rows must say, in parts of the way: the final norm is the one thing that direct effects have besides the sum."""
    lines = {(row["direction"], row["name"]): row for row in self_repair.sites(rows).iter_rows(named=True)}
    longer = made.stream_rms(made.WRITTEN / 2) / made.stream_rms(made.WRITTEN)
    for direction, direct in ((TUNED_INTO_BASE, 2 * longer), (BASE_INTO_TUNED, 2.0)):
        row = lines[direction, "L0.mlp_out"]
        yield near(f"{direction}: total effect of L0.mlp_out", row["total"], 1, 1e-4)
        yield near(f"{direction}: direct effect, what block 1 does held as it was", row["direct"], direct, 2e-4)
        yield near(f"{direction}: what later blocks undo", row["repaired"], direct - 1, 2e-4)
        yield near(f"{direction}: the same where nothing is after", lines[direction, "L2.mlp_out"]["repaired"], 0, 0)


def with_rows(net: Net, ids: torch.Tensor) -> None:
    """Embedding and unembedding with a row for each of `ids`, the old one's; for -1 a random one."""
    for seed, layer in enumerate((net.get_input_embeddings(), net.get_output_embeddings())):
        old = layer.weight.detach()
        new = edits.noise((len(ids), old.shape[1]), seed) * float(old.std())
        layer.weight = nn.Parameter(torch.where(ids[:, None] < 0, new, old[ids.clamp(min=0)]))
    net.config.vocab_size = len(ids)
