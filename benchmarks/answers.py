"""How much faster is a cell over whole answers than plain hooked passes? A ratio, both ways in turn in one process, on the embedded pair.

python benchmarks/answers.py [--prompts 4] [--tokens 16] [--pairs 4]

A *cell* is one patch of one prompt, scored at every token of its answer. The plain way is what a notebook does: for each cell one forward pass of
prompt and answer with a hook, logits of the answer's positions alone. Two edits: at every position of the answer, and at one that is itself scored
(the position where the two models part), for which a pass of one row is enough. Prompts of 60 to 200 tokens.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mechdiff.architectures.sites import Site
from mechdiff.demo import DATA, embedded_model
from mechdiff.engine.activations import Clean, edited, forward
from mechdiff.engine.counterfactuals import Subject, scores
from mechdiff.engine.generation import Speech, speak
from mechdiff.engine.outcome import CleanLogits
from mechdiff.engine.reading import captures, read, read_on
from mechdiff.engine.replay import Variant, replay
from mechdiff.measures.patching.formula import variants
from mechdiff.models.pair import Model, open_pair
from mechdiff.prompts.vocabularies import Tokens

KINDS = ("attn_out", "mlp_out", "resid_post")
PLAIN_CELLS = 12
"""Cells of the plain way that are run in each pair, spread over layers; the rest would take as long each."""


def main() -> None:
    asked = argparse.ArgumentParser()
    for name, default in (("prompts", 4), ("tokens", 16), ("pairs", 4), ("fewest", 60), ("most", 200)):
        asked.add_argument(f"--{name}", type=int, default=default)
    told = asked.parse_args()
    torch.set_num_threads(2)
    pair = open_pair(str(embedded_model()), str(DATA / "adapters" / "kazakh"), dtype="float32", device="cpu", memory="both", trusted=())
    tokenizer = pair.tokenizer("tuned")
    text = " ".join(line for line in (DATA / "prompts" / "kazakh_report.jsonl").read_text().splitlines())
    ids = tokenizer(text)["input_ids"]
    lengths = [told.fewest + (told.most - told.fewest) * i // max(1, told.prompts - 1) for i in range(told.prompts)]
    prompts = [ids[i * 50 : i * 50 + length] for i, length in enumerate(lengths)]
    states: dict[str, Any] = {}
    for side in ("tuned", "base"):
        with pair.use(side) as model:
            if side == "tuned":
                answers = [said.tolist() for said in speak(model, replay, prompts, Speech(max_tokens=told.tokens, stop=()))]
            whole = [[*one, *said[:-1]] for one, said in zip(prompts, answers, strict=True)]
            sites = [Site(layer, kind) for layer in range(model.shape.n_layers) for kind in KINDS]
            where = [range(len(one) - 1, len(both)) for one, both in zip(prompts, whole, strict=True)]
            states[side] = captures(model, whole, sites, where, every=True)
    ratios: dict[str, list[float]] = {}
    for side, other in (("tuned", "base"), ("base", "tuned")):
        with pair.use(side) as model:
            for name, values in _ratios(model, side, prompts, answers, states, other, told.pairs).items():
                ratios.setdefault(name, []).extend(values)
    for name, values in ratios.items():
        spread = f"{min(values):.1f} to {max(values):.1f}, {len(values)} pairs"
        print(f"{name}: plain hooked pass / here, a cell: {statistics.median(values):.1f} ({spread})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MB, {told.prompts} prompts of {told.fewest} to {told.most} tokens")


def _ratios(
    model: Model, side: str, prompts: list[list[int]], answers: list[list[int]], states: dict[str, list[Clean]], other: str, pairs: int
) -> dict[str, list[float]]:
    n_layers, n_tokens = model.shape.n_layers, len(answers[0])
    size = model.shape.vocab
    tokens = Tokens(relation="equal", pieces=(None,) * size, ids={}, n_shared=size)

    held = read(model, prompts)

    def over_answers() -> int:
        n_cells = 0
        for i, (ids, said) in enumerate(zip(prompts, answers, strict=True)):  # one prompt a pass, as the plan packs them
            clean = CleanLogits(base=states["base"][i].logits, tuned=states["tuned"][i].logits)
            subject = Subject(model=model, engine=replay, cleans=read(model, [ids]), tokens=tokens, answers=[said])
            for kind in KINDS:
                written = torch.stack([states[other][i].states[Site(layer, kind)][None] for layer in range(n_layers)])
                scores(subject, variants(kind, range(n_layers), written), clean, max_rows=512, metrics=("kl_own_nats", "kl_other_nats"))
                n_cells += n_layers
        return n_cells

    def at_one_position(together: bool) -> int:
        """On from the prompt's cache, which runs over answers hold, to the position before the last; there the edit is, and there it is scored; all
        kinds of site `together`, or in turn."""
        place = n_tokens - 1
        laws = {of: torch.stack([one.logits[place] for one in states[of]]) for of in states}
        clean = CleanLogits(base=laws["base"], tuned=laws["tuned"])
        started = time.process_time()
        cleans = read_on(model, replay, held, [said[:place] for said in answers])
        spent["reading"] += time.process_time() - started
        subject = Subject(model=model, engine=replay, cleans=cleans, tokens=tokens)
        edits: list[Variant] = []
        for kind in KINDS:
            at = (torch.stack([one.states[Site(layer, kind)][place:][:1] for one in states[other]]) for layer in range(n_layers))
            edits += variants(kind, range(n_layers), torch.stack(list(at)))
        groups = [edits] if together else [edits[i * n_layers : (i + 1) * n_layers] for i in range(len(KINDS))]
        started = time.process_time()
        for group in groups:
            scores(subject, group, clean, max_rows=512, metrics=("kl_own_nats", "kl_other_nats"))
        spent["rows"] += time.process_time() - started
        return len(prompts) * len(KINDS) * n_layers

    def plain(n_scored: int) -> int:
        """So many cells by a hooked pass each, logits of the scored positions alone."""
        n_cells = 0
        for i, (ids, said) in enumerate(zip(prompts, answers, strict=True)):
            whole, first = torch.tensor([[*ids, *said[:-1]]]), len(ids) - 1
            for number in range(PLAIN_CELLS):
                site = Site(number * n_layers // PLAIN_CELLS, KINDS[number % len(KINDS)])
                value = states[other][i].states[site]
                start = len(value) - n_scored
                hooked: Variant = variants(site.kind, [site.layer], {site.layer: value[None]})[0]
                put = hooked[site].value[0, start:]

                def write(tensor: torch.Tensor, put: torch.Tensor = put, at: int = first + start) -> None:
                    tensor[0, at : at + len(put)] = put

                with edited(model, {site: write}):
                    law = forward(model, whole, use_cache=False, logits_to_keep=n_scored).logits[0].float().log_softmax(-1)
                for of in ("base", "tuned"):
                    reference = states[of][i].logits[start:].log_softmax(-1)
                    (reference.exp() * (reference - law)).sum(-1).mean()
                n_cells += 1
        return n_cells

    def seconds(work: Callable[[], int]) -> float:
        started = time.process_time()
        n_cells = work()
        return (time.process_time() - started) / n_cells

    spent = {"reading": 0.0, "rows": 0.0}
    names = ("edit at every position, scored over the answer", "edit at the scored position", "the same, all kinds of site in one pass")
    over_answers(), at_one_position(False), at_one_position(True)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(pairs):
        found[names[0]].append(seconds(lambda: plain(n_tokens)) / seconds(over_answers))
        one = seconds(lambda: plain(1))
        for name, together in zip(names[1:], (False, True), strict=True):
            spent.update(dict.fromkeys(spent, 0.0))
            found[name].append(one / seconds(lambda together=together: at_one_position(together)))
            of_it = spent["reading"] / sum(spent.values())
            print(f"{name}: {of_it:.2f} of the time reads the answers up to there")
    print(side, {name: [round(value, 1) for value in values] for name, values in found.items()}, flush=True)
    return found


if __name__ == "__main__":
    main()
