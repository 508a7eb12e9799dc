"""Outcomes over whole answers are held against a change that no next token shows: one that acts from the third token of an answer on."""

from collections.abc import Iterator

import numpy as np
import torch

from mechdiff import labels
from mechdiff.architectures.sites import Site
from mechdiff.engine.counterfactuals import Subject, scores
from mechdiff.engine.generation import Speech, speak
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import captures, read
from mechdiff.engine.replay import Variant, replay
from mechdiff.measures.divergence.formula import over_answers
from mechdiff.measures.patching.formula import variants
from mechdiff.models.pair import Model, wrap
from mechdiff.prompts.vocabularies import Tokens
from mechdiff.validate import edits
from mechdiff.validate.checks import Check, above, at_most, near
from mechdiff.validate.planted import Bench, edited

N_TOKENS = 6
"""Of each answer."""
LATE = 1
"""The answer's token whose embedding is changed: what follows it is the third token."""


def p24(bench: Bench) -> Iterator[Check]:
    """The embedding of every answer's second token changed; prompts and first tokens have none of these."""
    base = wrap(bench.net, side="base", ref="planted base")
    prompts, answers, late = _apart(base, bench)

    def change(net: edits.Net) -> None:
        noise = torch.Generator().manual_seed(0)
        weight = net.get_input_embeddings().weight
        weight[late] += torch.randn(len(late), weight.shape[1], generator=noise) * weight.std()

    models = {"base": base, "tuned": wrap(edited(bench.net, change), side="tuned", ref="planted tuned")}
    whole = [[*ids, *said[:-1]] for ids, said in zip(prompts, answers, strict=True)]
    places = [range(len(ids) - 1, len(both)) for ids, both in zip(prompts, whole, strict=True)]
    kinds, n_layers = ("resid_post", "attn_out", "mlp_out"), base.shape.n_layers
    sites = [Site(layer, kind) for layer in range(n_layers) for kind in kinds]
    seen = {side: captures(model, whole, sites, places, every=True) for side, model in models.items()}
    base_logits, tuned_logits = (torch.cat([one.logits for one in seen[side]]) for side in ("base", "tuned"))
    clean = CleanLogits(base=base_logits, tuned=tuned_logits)
    lengths, names = [N_TOKENS] * len(prompts), [str(i) for i in range(len(prompts))]
    rows = over_answers(clean.base, clean.tuned, lengths, names, "report")
    by_metric = {metric: part["value"].to_numpy() for (metric,), part in rows.group_by("metric")}
    total, apart = by_metric["kl_tuned_base_answer_nats"].mean(), np.nanmin(by_metric["divergent_place"])
    early = (clean.base - clean.tuned).unflatten(0, (-1, N_TOKENS))[:, : LATE + 1]
    yield at_most("difference of any logit of the first two tokens", early.abs().max(), 0)
    yield above("mean D over the answers in nats", total, 1e-3)
    yield above("first place at which the top-1 tokens differ, any prompt", apart, LATE)

    tokens = Tokens(relation="equal", pieces=(None,) * clean.base.shape[-1], ids={}, n_shared=clean.base.shape[-1])
    for direction in labels.CROSSED:
        own, other = labels.sides(direction)
        model = models[own]
        subject = Subject(model=model, engine=replay, cleans=read(model, prompts), tokens=tokens, answers=answers)

        def run(kind: str, n_pos: int, of: str = other, subject: Subject = subject) -> torch.Tensor:
            states = torch.stack([torch.stack([one.states[Site(layer, kind)] for one in seen[of]]) for layer in range(n_layers)])
            written: list[Variant] = variants(kind, range(n_layers), states[:, :, :n_pos])
            found = scores(subject, written, clean, max_rows=512)
            metric = "kl_own_answer_nats" if subject.model.side == "tuned" else "kl_other_answer_nats"
            moved = found[metric][:, 1:].mean(0) / total
            return moved if subject.model.side == "tuned" else 1 - moved

        yield near(f"{direction}: share over the answers of resid_post, written at every place, every block", run("resid_post", N_TOKENS).tolist(),
                   1, 10 * bench.rounding + 1e-6)  # fmt: skip
        yield near(
            f"{direction}: the same, written at the decision position alone", run("resid_post", 1).tolist(), 0, 10 * bench.rounding + 1e-6
        )
        yield near(f"{direction}: the running model's own states, written at every place", run("mlp_out", N_TOKENS, own).tolist(), 0, 1e-6)


def _apart(base: Model, bench: Bench) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Prompts, the base's greedy answers, and these answers' second tokens, none of which is read before it is said."""
    said = speak(base, replay, bench.prompts, Speech(max_tokens=N_TOKENS, stop=()))
    kept: list[int] = []
    for i, (ids, answer) in enumerate(zip(bench.prompts, said, strict=True)):
        late = {int(said[j][LATE]) for j in [*kept, i]}
        before = {token for j in [*kept, i] for token in [*bench.prompts[j], *said[j][:LATE].tolist()]}
        if len(answer) == N_TOKENS and len(ids) > 1 and not late & before and len(kept) < bench.n_prompts:
            kept.append(i)
    prompts, answers = [list(bench.prompts[i]) for i in kept], [said[i].tolist() for i in kept]
    return prompts, answers, sorted({answer[LATE] for answer in answers})
