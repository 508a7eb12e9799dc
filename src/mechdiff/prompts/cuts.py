"""Two tokenizers may hold the same tokens and still cut one text otherwise: what a model reads is held against its files and against the other model.

What decides a cut beside the vocabulary stands in no list of tokens: normalisation, the pattern by which text is split before merges, the merges.
Two things can go wrong without a sign. transformers reads a tokenizer.json by a class of its own for some architectures, which brings its own
normaliser and pattern, so that texts are cut otherwise than the file says (docs/FORMATS.md). And two models of one vocabulary may cut otherwise:
then they differ although not a weight does. No torch here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechdiff.errors import ModelError
from mechdiff.prompts.rendering import Rendered
from mechdiff.prompts.vocabularies import Tokens


def said_of_file(tokenizer: Any, folder: Path, texts: Sequence[str], ref: str) -> list[str]:
    """A warning where a loaded tokenizer cuts texts otherwise than its tokenizer.json does, read by the library that wrote it.

    Tokens that stand in other files of the folder are given to the file's tokenizer too; what is put around a text (BOS, EOS) is left aside.
    """
    file = folder / "tokenizer.json"
    if not file.is_file() or not texts:
        return []
    stated = _of_file(tokenizer, file, ref)
    loaded = [one.ids for one in tokenizer(list(texts), add_special_tokens=False, verbose=False).encodings]
    written = [one.ids for one in stated.encode_batch(list(texts), add_special_tokens=False)]
    other = [i for i, (here, there) in enumerate(zip(loaded, written, strict=True)) if here != there]
    if not other:
        return []
    at = next(i for i, (here, there) in enumerate(zip([*loaded[other[0]], -1], [*written[other[0]], -1], strict=False)) if here != there)
    pieces = [_pieces(one, ids[at : at + 3]) for one, ids in ((tokenizer, loaded[other[0]]), (stated, written[other[0]]))]
    return [
        f"{ref}: {len(other)} of {len(texts)} prompts are not cut as its tokenizer.json says: transformers reads that file by its class "
        f"{type(tokenizer).__name__}, which brings rules of its own (first difference: {pieces[0]}; by the file: {pieces[1]}). The model reads what "
        "transformers gives it, here as in any other program that loads it so; one that reads the file itself gives it other tokens."
    ]


def said_of_cuts(rendered: Sequence[Rendered], tokens: Tokens) -> list[str]:
    """A warning where two models that have the same tokens cut the same texts otherwise."""
    same_text = [one for one in rendered if one.text_base == one.text_tuned]
    other = [one for one in same_text if tokens.all_shared and not same_cut(one, tokens)]
    if not other:
        return []
    return [
        f"both models have the same tokens, and cut {len(other)} of {len(same_text)} prompts into others (the first: {other[0].prompt.id!r}, "
        f"{len(other[0].ids_base)} tokens in base, {len(other[0].ids_tuned)} in tuned): their tokenizers normalise or split text otherwise. What "
        "the two predict differs by that too, with equal weights as well."
    ]


def same_cut(one: Rendered, tokens: Tokens) -> bool:
    """Whether both models read one prompt as the same tokens, whatever their ids."""
    if len(one.ids_base) != len(one.ids_tuned):
        return False
    return tokens.places("base", one.ids_base) == tokens.places("tuned", one.ids_tuned)


def _of_file(tokenizer: Any, file: Path, ref: str) -> Any:
    from tokenizers import Tokenizer

    try:
        stated = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        if type(error) is not Exception:
            raise
        raise ModelError(f"{ref}: its {file.name} cannot be read ({error}). Is the download complete?") from error
    stated.no_truncation()
    stated.no_padding()
    for i, token in sorted(tokenizer.added_tokens_decoder.items()):
        if stated.token_to_id(token.content) != i:
            (stated.add_special_tokens if token.special else stated.add_tokens)([token])
    return stated


def _pieces(tokenizer: Any, ids: Sequence[int]) -> str:
    name = tokenizer.convert_ids_to_tokens if hasattr(tokenizer, "convert_ids_to_tokens") else None
    return " ".join(repr(token) for token in (name(list(ids)) if name else map(tokenizer.id_to_token, ids)))
