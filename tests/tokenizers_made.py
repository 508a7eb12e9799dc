"""Tokenizers made in memory: no files, no network. Each is a fast tokenizer of transformers, as a real model would bring.

byte_tokenizer(chat_template=CHATML)        259 tokens: ids 0-255 are the bytes, then bos, eos, pad
bpe_tokenizer(texts, vocab_size=400)        byte-level BPE trained on `texts`
word_tokenizer(texts)                       one token a word, spaces belong to none
piece_tokenizer(texts, 300)                 SentencePiece letters with byte fallback, by BPE or unigram
wordpiece_tokenizer(texts, 300)             WordPiece trained on `texts`
"""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mechdiff.validate.made import BOS, CHATML, EOS, PAD, SPECIALS, byte_characters, byte_level, byte_tokenizer, wrapped

TRIMMING = (
    "{{ bos_token }}{% for message in messages %}[{{ message.content | trim }}]{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
)
"""A template that trims the white space around a message, as Llama's does."""


def bpe_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 400,
    chat_template: str | None = None,
    *,
    adds_bos: bool = True,
    words: bool = True,
    trim_offsets: bool = False,
    normalizer: normalizers.Normalizer | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with about `vocab_size` tokens, trained on `texts`, specials last.

    `words=False` lets tokens cross word boundaries (so that a token may end in a space, or end inside a character);
    `trim_offsets` reports spans without the spaces around them, as Llama 3's tokenizer does.
    """
    tokenizer = byte_level(models.BPE(), words=words)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[]
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrapped(tokenizer, chat_template, adds_bos=adds_bos, trim_offsets=trim_offsets)


def word_tokenizer(texts: Iterable[str], chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a word; white space belongs to no token, and words not in `texts` are one unknown token. Adds no BOS."""
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*words, "<unk>"])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(tokenizer, chat_template, adds_bos=False)


def piece_tokenizer(
    texts: Iterable[str], vocab_size: int = 300, chat_template: str | None = None, *, prefix: bool = False, unigram: bool = False
) -> PreTrainedTokenizerFast:
    """SentencePiece's letters, trained on `texts`: `▁` for a space, byte tokens `<0x..>` for what the vocabulary lacks. Adds no BOS.

    `prefix` puts a space in front of the text, as Llama 2 does (Gemma does not); `unigram` is SentencePiece's own model instead of BPE.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    marked = [text.replace(" ", "▁") for text in texts]
    normalizer = normalizers.Sequence(([normalizers.Prepend("▁")] if prefix else []) + [normalizers.Replace(" ", "▁")])
    if unigram:
        learned = Tokenizer(models.Unigram())
        learned.train_from_iterator(
            marked, trainers.UnigramTrainer(vocab_size=vocab_size, unk_token="<unk>", show_progress=False, special_tokens=["<unk>"])
        )
        scored = [piece for piece in json.loads(learned.to_str())["model"]["vocab"] if piece[0] != "<unk>"]
        listed = [("<unk>", 0.0), *((byte, -20.0) for byte in bytes_), *map(tuple, scored)]
        tokenizer = Tokenizer(models.Unigram(listed, unk_id=0, byte_fallback=True))
    else:
        learned = Tokenizer(models.BPE())
        learned.train_from_iterator(
            marked, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=[], limit_alphabet=60)
        )
        bpe = json.loads(learned.to_str())["model"]
        vocabulary = {piece: i for i, piece in enumerate(["<unk>", *bytes_, *(p for p in bpe["vocab"])])}
        merges = [tuple(merge) for merge in bpe["merges"]]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    stripped = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = chat_template
    return wrapped


def wordpiece_tokenizer(texts: Iterable[str], vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """BERT's letters, trained on `texts`: `##` opens what continues a word. Adds no BOS and has no template."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", clean_up_tokenization_spaces=False)
