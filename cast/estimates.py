"""How long work will take, told before any weight is loaded: its products, at the speed of this device.

An estimate counts the multiplications of matrix products alone, from the shapes of the models and the
settings, and divides them by a speed that `devices.product_speed` has just measured on products as wide as
the models are. To that comes a time for each token that is handled (tokenizers, hooks, alignment), which is
most of it where models are small. Text and weights that have to be fetched first are not counted.
"""

from dataclasses import dataclass

from cast.devices import pick_device, product_speed
from cast.exciting import SHOTS
from cast.fitting import FitConfig
from cast.language_model import SMALL
from cast.models import default_dtype
from cast.recipes import TranslationConfig
from cast.unprompted import asking_tokens

# As `python -m benchmarks.expected` finds it for the pocket zoo on one core.
TOKEN_SECONDS = 4e-4
# Share of that where texts are only read, or many written side by side, to find what a fit shall read.
_SOUGHT = 0.1
# Passages of general text are a few dozen tokens long, prompts and the answers to them as well.
_TEXT_TOKENS = 48
# A backward pass multiplies twice what the forward pass does.
_WITH_GRADIENTS = 3
# Moments are summed in float64, which takes twice as long.
_DOUBLE = 2


@dataclass(frozen=True)
class Shape:
    """What of a model decides how long it takes."""

    width: int
    depth: int
    vocabulary: int
    parameters: int

    def forward(self, tokens: float) -> float:
        """Operations of a forward pass over so many tokens."""
        return 2.0 * self.parameters * tokens


def fit_seconds(source: Shape, target: Shape, config: FitConfig) -> float:
    """Seconds that `fit_heads` takes on this device, its text not counted."""
    depths = target.depth + 1 if config.depths is None else len(config.depths)
    trained = config.tokens * config.passes
    steps = trained * config.repeats
    again = trained if config.kind == "mlp" or config.kl_weight else 0
    passes = config.tokens + config.held_out_tokens + again
    # An encode head may read several depths of the target side by side, whose moments come to the others.
    read = config.encode_reads * target.width
    products = source.width**2 + target.width**2 + source.width * target.width
    if config.encode_reads > 1:
        products += read**2 + source.width * read
    moments = 2.0 * _DOUBLE * config.tokens * depths * products
    inner = config.mlp_width * (2 * source.width + target.width + read)
    one = source.width * (target.width + read) + inner if config.kind == "mlp" else 0
    heads = 2.0 * _WITH_GRADIENTS * steps * depths * one
    words = (
        2.0 * (1 + _WITH_GRADIENTS) * steps * target.vocabulary * target.width if config.kl_weight else 0.0
    )
    models = source.forward(passes) + target.forward(passes)
    return (models + moments + heads + words) / _speed(source, target) + passes * TOKEN_SECONDS


def translate_seconds(
    source: Shape, target: Shape, config: TranslationConfig, *, prompts: int, expand: bool = True
) -> float:
    """Seconds that `translate` takes on this device where the pair has its heads; 0 where it runs at once.

    Args:
        source: of the adapter.
        target: of the translation.
        config: mode and settings.
        prompts: how many example prompts are given; all that is made of them is answered first.
        expand: whether they are made more.
    """
    if config.mode == "hosted":
        return 0.0
    if config.mode != "compiled":
        # Site maps read both models, by the adjoint with gradients.
        read = _WITH_GRADIENTS if config.decode_fit == "adjoint" else 1
        work = read * (source.forward(config.site_tokens) + target.forward(config.site_tokens))
        return work / _speed(source, target) + read * config.site_tokens * TOKEN_SECONDS
    config = config.suited(small=target.parameters < SMALL, prompts=bool(prompts))
    # Something between one round and all that there may be.
    rounds = (1 + config.most_rounds(prompts=bool(prompts))) / 2
    tokens = config.batch_size * _TEXT_TOKENS
    # Each batch is told once, by the source with and without its adapter and by the bare target.
    work = rounds * config.lessons * (2 * source.forward(tokens) + target.forward(tokens))
    work += rounds * config.steps_a_round * _WITH_GRADIENTS * target.forward(tokens)
    asked, written, either = sought = _sought_tokens(config, source.vocabulary, prompts, expand=expand)
    work += source.forward(asked) + target.forward(written)
    # The larger of the two writes, at most.
    work += max(source.forward(either), target.forward(either))
    handled = rounds * config.steps_a_round * tokens + _SOUGHT * sum(sought)
    return work / _speed(source, target) + handled * TOKEN_SECONDS


def _sought_tokens(
    config: TranslationConfig, vocabulary: int, prompts: int, *, expand: bool
) -> tuple[int, int, int]:
    """Tokens that the source reads or writes, the target, and one of them, to find what a fit shall read."""
    if prompts:
        read = config.prompts_for(prompts) if expand else prompts
        # Each that is made is written behind a few others; all are read to be answered, as long again.
        return 2 * read * _TEXT_TOKENS, 0, (SHOTS + 1) * (read - prompts) * _TEXT_TOKENS
    return asking_tokens(config, _TEXT_TOKENS, vocabulary) if config.asks else (0, 0, 0)


def _speed(source: Shape, target: Shape) -> float:
    """Operations a second of products as wide as the wider model."""
    larger = max((source, target), key=lambda shape: shape.parameters)
    device = pick_device()
    return product_speed(larger.width, device, default_dtype(device, larger.parameters))
