"""What a base model can do on held-out plain text: the competence probes and bits per byte."""

import itertools
import math
from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerBase

from cast.pocket.probes import PROBE_KINDS, REQUIRED, probes
from cast.pocket.world import general_text


def passes(scores: Mapping[str, float], least: float = 0.95) -> bool:
    """Whether every required kind of probe is at or above the bar."""
    return all(scores[kind] >= least for kind in REQUIRED)


def competence(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, count: int = 200
) -> dict[str, float]:
    """Share of probes of each kind where greedy decoding gives the right word."""
    scores = {}
    for kind in PROBE_KINDS:
        right = 0
        items = list(probes(kind, count))
        for start in range(0, count, 50):
            part = items[start : start + 50]
            prefix = [len(ids) for ids in tokenizer([item.prefix for item in part])["input_ids"]]
            ids = tokenizer([item.prefix + item.word for item in part])["input_ids"]
            width = max(map(len, ids))
            padded = torch.tensor([row + [2] * (width - len(row)) for row in ids])
            with torch.inference_mode():
                best = model(padded).logits.argmax(-1)
            right += sum(
                all(best[i, j - 1] == padded[i, j] for j in range(prefix[i], len(ids[i])))
                for i in range(len(part))
            )
        scores[kind] = right / count
    return scores


def bits_per_byte(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, documents: int = 300) -> float:
    """Bits per byte on held-out general text, end of text included."""
    texts = list(itertools.islice(general_text(1, "held-out"), documents))
    nats, size = 0.0, sum(len(text.encode()) for text in texts)
    for start in range(0, documents, 50):
        ids = [[*row, 1] for row in tokenizer(texts[start : start + 50])["input_ids"]]
        width = max(map(len, ids))
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in ids])
        with torch.inference_mode():
            logits = model(labels.clamp(min=0)).logits
        nats += torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        ).item()
    return nats / math.log(2) / size


def sample(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    tokens: int = 120,
    seed: int = 0,
) -> str:
    """A continuation drawn at temperature 0.7, up to the end of text."""
    generator = torch.Generator().manual_seed(seed)
    ids = tokenizer(prompt)["input_ids"]
    for _ in range(tokens):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1]
        drawn = int(torch.multinomial(torch.softmax(logits / 0.7, 0), 1, generator=generator))
        if drawn == tokenizer.eos_token_id:
            break
        ids.append(drawn)
    return tokenizer.decode(ids, skip_special_tokens=True)
