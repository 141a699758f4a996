"""Heads and texts for tests of translation: random or identical heads between tiny models, a fixed little
corpus."""

import torch
from conftest import TRAINING_TEXT

from cast.alignment import LayerMap
from cast.heads import AffineHead, HeadPair, HeadRecipe, HeadSet, ModelTag
from cast.models import LanguageModel


def corpus(count: int, start: int = 0) -> list[str]:
    """`count` different texts of two sentences and a number."""
    return [
        f"{TRAINING_TEXT[index % 5]} {index} {TRAINING_TEXT[(index * 3 + 1) % 5]}"
        for index in range(start, start + count)
    ]


def heads_for(source: LanguageModel, target: LanguageModel, *, identity: bool = False) -> HeadSet:
    """Heads at every depth: the identity, or random affine maps."""
    generator = torch.Generator().manual_seed(7)

    def head(inputs: int, outputs: int) -> AffineHead:
        made = AffineHead(inputs, outputs).requires_grad_(False)
        random = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        made.weight.copy_(torch.eye(inputs) if identity else random)
        return made

    return HeadSet(
        source=ModelTag.of(source),
        target=ModelTag.of(target),
        layer_map=LayerMap.by_relative_depth(source.depth, target.depth),
        pairs=tuple(
            HeadPair(encode=head(target.width, source.width), decode=head(source.width, target.width))
            for _ in range(target.depth + 1)
        ),
        quality=(),
        recipe=HeadRecipe("affine", "none", 0, 0, 0, "float32"),
    )
