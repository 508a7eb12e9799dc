"""The sentences at the top of a scan's page: how far apart the two models are, where most, and which text holds a direction."""

import math
from collections.abc import Mapping
from typing import Any

from mechdiff.report.phrasing import nats, share, visible, with_interval

SURE = 0.05


def sentences(record: Mapping[str, Any]) -> list[str]:
    """At most five; nothing is said of a word or domain that was not confirmed."""
    numbers, texts = record["numbers"], f"{record['texts_scored']:,} texts"
    if not record["tokens"]:
        if not record["texts_left_out"]:
            return ["No text has a token that another one follows: nothing could be compared."]
        why = visible(record["left_out"][-1])
        n, of = f"{record['texts_left_out']:,}", f"{record['texts']:,}"
        return [f"Nothing could be compared: of {of} texts {n} were left out, and no other has two tokens ({why})."]
    over = f"Over {texts} ({record['tokens']:,} tokens)"
    if record["tokens_all_shared"]:
        if not numbers["kl_tuned_base_max"]:
            return [f"{over} the two models predict exactly the same."]
        apart = f"{nats(numbers['kl_tuned_base_mean'])} nats per token"
    else:
        own = [share(numbers[f"mass_own_{side}"]) for side in ("base", "tuned")]
        apart = (
            f"{nats(numbers['kl_tuned_base_mean'])} nats per token, over the tokens of both vocabularies (on others lies {own[0]} of the base's "
            f"probability and {own[1]} of the tuned model's),"
        )
    said = [
        f"{over} the tuned model is {apart} from the base, with the same top token at {100 * numbers['top1_same']:.1f} % of them and a perplexity "
        f"× {numbers['ppl_ratio']:.3f}."
    ]
    marks = [one for one in record["features"] if one["confirmed"]]
    for one in [one for one in marks if one["score"] == "kl"][:1]:
        said.append(parting(one))
    for verb, sign in (("rises", 1), ("falls", -1)):
        for one in [one for one in marks if one["score"] == "loss" and one["effect"] * sign > 0][:1]:
            size = with_interval(one["effect"], one["low"], one["high"])
            said.append(f"The loss {verb} in texts with {named(one)}: by {size} nats per token beside other texts.")
    if not marks and record["features"]:
        said.append("No word, pair of words or domain that marks such texts on one half was confirmed on the other.")
    for one in outstanding(record)[:1]:
        text = visible(one["texts"][0]["id"])
        said.append(
            f"Text {text} stands out along a direction of the change ({one['direction']}): {nats(one['z'])} spreads, p = {nats(one['p'])}."
        )
    return said


def parting(feature: Mapping[str, Any]) -> str:
    """Where KL is larger than in other texts of the same base loss; that the models part more there only if it is larger as it is, too."""
    times, raw = (
        with_interval(*(math.exp(feature[name]) for name in names)) for names in (("effect", "low", "high"), ("raw", "raw_low", "raw_high"))
    )
    most = (
        f"They part more in texts with {named(feature)}: KL there is" if feature["raw_low"] > 0 else f"In texts with {named(feature)} KL is"
    )
    return f"{most} × {times} that of other texts of the same base loss, and as it is × {raw}, on the half where it was not found."


def named(feature: Mapping[str, Any]) -> str:
    """A word, a pair, or a domain by its words."""
    name = visible(feature["feature"])
    return f"the words of the domain {name.removeprefix('domain: ')}" if name.startswith("domain: ") else name


def outstanding(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Directions along which a text stands out, corrected over all of them (Bonferroni)."""
    return [one for one in record["directions"] if one["p"] is not None and one["p"] * len(record["directions"]) <= SURE and one["texts"]]
