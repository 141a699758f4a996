"""Tokenizers of the pocket zoo: three kinds, each with a size of its own, trained on general text."""

import itertools
import json
import math
from collections import Counter
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cast.pocket.world import general_text

TokenizerKind = Literal["byte-bpe", "metaspace-bpe", "unigram"]

BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"
SPECIAL = (BOS, EOS, PAD)
MAX_POSITIONS = 1024


def train_tokenizer(
    kind: TokenizerKind, size: int, *, seed: int, documents: int = 8000
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of about `size` pieces on general text.

    All of them restore every text exactly: characters outside the vocabulary fall back to bytes.
    """
    texts = list(itertools.islice(general_text(seed), documents))
    tokenizer = _byte_level(texts, size) if kind == "byte-bpe" else _metaspace(texts, size, kind)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        model_max_length=MAX_POSITIONS, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _byte_level(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _metaspace(texts: list[str], size: int, kind: TokenizerKind) -> Tokenizer:
    """BPE or Unigram as SentencePiece writes them: a space is a visible sign at the front of a word."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"\n|▁?[A-Za-z]+|▁?[0-9]|▁?[^\sA-Za-z0-9▁]"), "isolated"),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    if kind == "unigram":
        pieces = _unigram_pieces(texts, split, size - len(bytes_) - len(SPECIAL) - 1)
        floor = min(score for _, score in pieces) - 10.0
        vocabulary = [(name, 0.0) for name in (*SPECIAL, UNKNOWN)]
        vocabulary += [(name, floor) for name in bytes_] + pieces
        tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=len(SPECIAL), byte_fallback=True))
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=False, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = split
        names = [*SPECIAL, UNKNOWN, *bytes_]
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=names, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        # The trainer made the byte pieces special; as plain vocabulary they take part in decoding.
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _unigram_pieces(
    texts: list[str], split: pre_tokenizers.PreTokenizer, size: int, rounds: int = 4
) -> list[tuple[str, float]]:
    """Pieces of a Unigram tokenizer with their log probabilities, by hard expectation maximisation.

    The library's own trainer counts each distinct word once, which on a small lexicon leaves no whole words.
    """
    words = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = split
    draft.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2 * size, show_progress=False))
    characters = {character for word in words for character in word}
    scores = {piece: -float(len(piece)) for piece in draft.get_vocab() if len(piece) < 12}
    for turn in range(rounds):
        model = models.Unigram([("<unk>", 0.0), *sorted(scores.items())], unk_id=0)
        tokenizer = Tokenizer(model)
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for piece in tokenizer.encode(word).tokens:
                counts[piece] += count
        keep = [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        room = size * 2 // (turn + 1) if turn < rounds - 1 else size
        room = max(size, room) - len(characters)
        chosen = set([piece for piece in keep if len(piece) > 1][:room]) | characters
        total = sum(counts.values())
        scores = {piece: math.log((counts[piece] + 0.1) / total) for piece in chosen}
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
