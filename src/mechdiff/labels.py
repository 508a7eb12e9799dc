"""Directions, arms, units and controls are text in a table of rows, and are made and read back here alone. No torch here.

    direction   "tuned<-base"       the tuned model runs, the base's state is written into it
    arm         "rrr"               how the state was made that is written, by a patch or a map; other measures have other arms
    unit        "head 3", "heads 1,4", "group 0", "all"     heads of one block; "head 3, answer_16": at every position of an answer
                "L3.head 1+L5.mlp"  players of the whole network; "L3.attn+L5.mlp": its modules; "L3.attn_out+L5.mlp_out": two sites
                "window 2, last_4"  neighbouring blocks and several positions; "all_pos": every position
                "experts, all_pos"  the experts that a block's tokens are sent to, at every position; "experts": at the decision position
                "token 17"          one token of a text;  "tuned, sampled": what one model said, and of which kind it is
                "passages, gained: the"     a line of evidence: what was read, whether the tuned model has more of it, and the token or feature
                "texts: code"       a group of texts that both models read
                "cut 8", "cut full" a map between so many principal components of each side, or between all
    control     "permuted#3"        one draw of a control; "bogus_map:L4": the map of another layer; others are plain words

Nothing else composes these texts or takes them apart, so a writer of rows and a reader of them cannot disagree. Functions that return an expression
read a whole column of a table.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import polars as pl

# ---- directions ----------------------------------------------------------------------------------------------------------------------

BASE_INTO_TUNED, TUNED_INTO_BASE = "tuned<-base", "base<-tuned"
CROSSED = (BASE_INTO_TUNED, TUNED_INTO_BASE)
"""Directions in which one model runs with a state of the other."""
WITHIN = ("base<-base", "tuned<-tuned")
"""Directions in which a model runs with an edited state of its own."""


def direction_of(runs: str, source: str) -> str:
    """The direction in which the model `runs` is given a state of the model `source`."""
    return f"{runs}<-{source}"


def sides(of: str) -> tuple[str, str]:
    """The model that runs, and the model whose state is written."""
    runs, _, source = of.partition("<-")
    return runs, source


def runner(of: str) -> str:
    """The model that runs."""
    return sides(of)[0]


def runner_column() -> pl.Expr:
    """The model that runs, as a column `runner`."""
    return pl.col("direction").str.split("<-").list.first().alias("runner")


# ---- arms ----------------------------------------------------------------------------------------------------------------------------

PATCHES = ("identity", "shift", "mean", "resample")
"""What is written without learning anything about the single prompt: see measures/patching/formula.py."""
MAPS = ("diag_affine", "anchored_ridge", "anchored_procrustes", "rrr", "ridge", "standardised_ridge", "pca", "procrustes", "whitened_procrustes",
        "logit_subspace", "logit_subspace_joint", "per_cluster", "rank_truncated", "rescaled", "norm_matched")  # fmt: skip
"""Maps that are learned: see maps/maps.py. The first four are the default; unanchored ones run by name only."""


def cut_unit(cut: int | str) -> str:
    """A map between the first `cut` principal components of each side, or between all ("full")."""
    return f"cut {cut}"


def cut_words() -> pl.Expr:
    """The components that a cut map is between, as a study says them; null for other rows."""
    return pl.col("unit").str.extract(r"^cut (\d+|full)$")


# ---- units: heads of one block, and players of the network ----------------------------------------------------------------------------

ALL = "all"
"""All heads of a block, or all modules or players of the network."""
Player = tuple[int, int | None]
"""(block, head), or (block, None): the block's MLP."""


def head_unit(head: int) -> str:
    return f"head {head}"


def heads_unit(heads: Iterable[int], n_heads: int) -> str:
    """A set of one block's heads, of which it has `n_heads`."""
    chosen = sorted(heads)
    if len(chosen) == n_heads:
        return ALL
    return head_unit(chosen[0]) if len(chosen) == 1 else f"heads {','.join(map(str, chosen))}"


def head_of(unit: str | None) -> int | None:
    """The head that a unit is; None for every other unit."""
    found = re.fullmatch(r"head (\d+)", unit or "")
    return int(found[1]) if found else None


def heads_of(unit: str, n_heads: int) -> list[int]:
    """The heads of a set of one block's heads, of which it has `n_heads`."""
    return list(range(n_heads)) if unit == ALL else [int(head) for head in unit.removeprefix("heads ").removeprefix("head ").split(",")]


def is_head() -> pl.Expr:
    """Whether a row is of one head."""
    return pl.col("unit").str.contains(r"^head \d+$").fill_null(False)


def is_several_heads() -> pl.Expr:
    """Whether a row is of a set of two or more heads that is not all of them."""
    return pl.col("unit").str.starts_with("heads ").fill_null(False)


def head_number() -> pl.Expr:
    """The number of the head that a row is of; null for other rows."""
    return pl.col("unit").str.extract(r"^head (\d+)$").cast(pl.Int64)


def group_unit(group: int) -> str:
    """The heads that share one key and value."""
    return f"group {group}"


def group_of(unit: str | None) -> int | None:
    """The key-value group that a unit is; None for every other unit."""
    found = re.fullmatch(r"group (\d+)", unit or "")
    return int(found[1]) if found else None


def player_name(player: Player) -> str:
    """A head or an MLP by its name in the network: "L26.head 3", "L5.mlp"."""
    layer, head = player
    return f"L{layer}.mlp" if head is None else f"L{layer}.{head_unit(head)}"


def player_of(name: str) -> Player:
    """The player that a name stands for."""
    block, _, rest = name.removeprefix("L").partition(".")
    return int(block), None if rest == "mlp" else head_of(rest)


def set_unit(names: Iterable[object]) -> str:
    """A set of modules, or of players, of the network."""
    return "+".join(map(str, names))


def set_of(unit: str | None) -> list[str]:
    """The names of a set of modules or players; of no unit one empty name."""
    return (unit or "").split("+")


# ---- units: blocks, positions and tokens, and what a model says -----------------------------------------------------------------------

ALL_POSITIONS, POOLED = "all_pos", "words"
"""Every position; a study's word for all positions as one, their mean taken word by word."""
PARTING = "divergent"
"""A unit `along_answer`: what is written at one of its positions alone, the first one at which the two models' top-1 tokens differ."""


def answer_position(n_tokens: int) -> str:
    """The decision position and every token of an answer of `n_tokens` but its last, as a study's word for positions, and as a unit."""
    return f"answer_{n_tokens}"


def along_answer(unit: str, n_tokens: int) -> str:
    """The same unit ("head 3"), written at every position of an answer."""
    return f"{unit}, {answer_position(n_tokens)}"


def is_over_answer() -> pl.Expr:
    """Whether a row is of a write at every position of an answer."""
    return pl.col("unit").str.contains(r"(^|, )answer_\d+$").fill_null(False)


def answer_words() -> pl.Expr:
    """The words of a unit that name the positions of an answer ("answer_16"); null for other rows."""
    return pl.col("unit").str.extract(r"(answer_\d+)$")


def beside_answer() -> pl.Expr:
    """The unit without the words that name the positions of an answer; null where it is nothing else."""
    stripped = pl.col("unit").str.replace(r"(, )?answer_\d+$", "")
    return pl.when(stripped != "").then(stripped)


class Window(NamedTuple):
    """How many neighbouring blocks are written at, and at which positions in a study's word: "decision", "last_4", "all"."""

    width: int
    position: str


def window_unit(width: int, position: str) -> str | None:
    """A window of blocks and positions; None for one block at the decision position."""
    words = [f"window {width}"] if width > 1 else []
    if position != "decision":
        words.append(ALL_POSITIONS if position == "all" else position)
    return ", ".join(words) or None


def window_of(unit: str | None) -> Window:
    """The blocks and positions that a unit names."""
    width, position = 1, "decision"
    for word in unit.split(", ") if unit else []:
        if word.startswith("window "):
            width = int(word.removeprefix("window "))
        else:
            position = "all" if word == ALL_POSITIONS else word
    return Window(width, position)


def window_words() -> pl.Expr:
    """The words of a unit that name several blocks ("window 3"); null where it names one."""
    return pl.col("unit").str.extract(r"(window \d+)")


POSITIONS = ("template before", "first words", "words", "last words", "template after", "decision")
"""Parts of a prompt, in its order: what all prompts open with, the user's own words (the first three tokens, the last three, and what is between),
what all prompts end with, and the decision position."""


def position_unit(part: str | int) -> str:
    """One part of a prompt (of POSITIONS) or one position of it, where alone something is written."""
    return f"position {part}" if isinstance(part, int) else f"positions: {part}"


def is_position() -> pl.Expr:
    """Whether a row is of a write at one part of a prompt, or at one position of it."""
    return pl.col("unit").str.contains(r"^positions?:? ").fill_null(False)


def position_number() -> pl.Expr:
    """The single position of a prompt that a row is of; null for other rows."""
    return pl.col("unit").str.extract(r"^position (\d+)$").cast(pl.Int64)


def is_everywhere() -> pl.Expr:
    """Whether a row is of every position."""
    return pl.col("unit").str.contains(ALL_POSITIONS).fill_null(False)


def n_positions(position: str) -> int | None:
    """Positions that a study's word stands for: decision and words (a mean) 1, last_4 and spread_4 4, all None."""
    return None if position == "all" else 1 if position in ("decision", POOLED) else int(position.rpartition("_")[2])


def experts_unit(position: str) -> str:
    """The experts of one block, at the decision position or as the mean over "all"."""
    return ", ".join(filter(None, ("experts", window_unit(1, position))))


def token_unit(place: int) -> str:
    return f"token {place}"


def token_of(unit: str) -> int:
    """The place of a token in its text."""
    return int(unit.removeprefix("token "))


def is_token() -> pl.Expr:
    """Whether a row is of one token of a text."""
    return pl.col("unit").str.contains(r"^token \d+$").fill_null(False)


SAMPLED, SHARED_TOKENS = "sampled", "shared tokens"


def answer_unit(side: str, kind: str | None = None) -> str:
    """What a model says: in a style, drawn (`SAMPLED`), or cut to the tokens that both models have (`SHARED_TOKENS`)."""
    return f"{side}, {kind}" if kind else side


def answer_side() -> pl.Expr:
    """The model that a row of answers is of."""
    return pl.col("unit").str.split(", ").list.first()


def answer_kind() -> pl.Expr:
    """The kind of answers that a row is of; null for plain ones."""
    return pl.col("unit").str.split(", ").list.get(1, null_on_oob=True)


def texts_unit(group: str) -> str:
    """A group of texts that both models read."""
    return f"texts: {group}"


def texts_group() -> pl.Expr:
    """The group of texts that a row is of; null for other rows."""
    return pl.col("unit").str.extract(r"^texts: (.+)$")


class EvidenceLine(NamedTuple):
    """One line of evidence of what was taught: what was read, whether the tuned model has more of it, and the token or feature of texts."""

    where: str
    gained: bool
    text: str


def evidence_unit(where: str, gained: bool, text: str) -> str:
    return f"{where}, {'gained' if gained else 'lost'}: {text}"


def evidence_of(unit: str) -> EvidenceLine:
    """The line of evidence that a unit is."""
    head, _, text = unit.partition(": ")
    where, _, way = head.rpartition(", ")
    return EvidenceLine(where, way == "gained", text)


# ---- controls -------------------------------------------------------------------------------------------------------------------------


def draw(control: str, number: int) -> str:
    """One draw of a control."""
    return f"{control}#{number}"


def other_layer(layer: int) -> str:
    """The control that writes what the map of another layer makes."""
    return f"bogus_map:L{layer}"


def control_kind(control: str) -> str:
    """The control without its draw or layer: "permuted" of "permuted#3", "bogus_map" of "bogus_map:L4"."""
    return control.partition("#")[0].partition(":")[0]


def control_kind_column() -> pl.Expr:
    """The control of each row without its draw or layer; null for the real thing."""
    return pl.col("control").str.replace(r"#\d+$", "").str.replace(r"^bogus_map:L\d+$", "bogus_map")


def is_draw(control: str | None = None) -> pl.Expr:
    """Whether a row is one draw of a control: of this one, or of any."""
    found = pl.col("control").str.contains("#") if control is None else pl.col("control").str.starts_with(f"{control}#")
    return found.fill_null(False)


def is_random_edit() -> pl.Expr:
    """Whether a row is of a random vector, subspace or set."""
    return pl.col("control").str.starts_with("random_").fill_null(False)


def other_layer_column() -> pl.Expr:
    """The layer whose map a row's control writes; null for other rows."""
    return pl.col("control").str.extract(r"^bogus_map:L(\d+)$").cast(pl.Int64)
