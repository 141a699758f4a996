"""An ordinary LoRA, trained with PEFT on examples: the reference every translation is measured against.

The loss falls on the tokens of the completion and on the end of the text. Prompt and completion are tokenised
as one string, as they are when the trained model is scored and when it generates, so no boundary token is
learnt that never occurs.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup

from cast import adapters
from cast.activations import captured
from cast.adapters import Lora
from cast.errors import RequestError, TaskError
from cast.models import LanguageModel, TokenBatch
from cast.pocket.tasks import Example
from cast.progress import OnProgress, Progress, ignore

# Batches that are drawn together and sorted by length.
_POOL = 8
_SMALL_RATE, _LARGE_RATE = 2e-3, 5e-4


@dataclass(frozen=True)
class LoraTrainingConfig:
    """What to train and for how long."""

    rank: int = 8
    """Rank of every kernel that `rank_pattern` does not name."""
    alpha: float = 16.0
    """Scaling is alpha / rank, or alpha / sqrt(rank) with `use_rslora`."""
    targets: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer in the blocks), or the ends of module names, as PEFT takes them."""
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Ranks of modules whose name ends so, instead of `rank`."""
    dropout: float = 0.0
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 2e-3
    """Peak of a cosine that ends at zero; see `suited_rate`."""
    warmup: int = 20
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    max_length: int = 512
    """Longest example in tokens, BOS and end included."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train anything."""
        for name in ("rank", "alpha", "steps", "batch_size", "learning_rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} is {value}; it must be a positive number.")
        if not 0 <= self.dropout < 1:
            raise RequestError(f"dropout is {self.dropout}; it must be at least 0 and below 1.")
        if self.max_length < 3:
            raise RequestError(f"max_length is {self.max_length}; an example needs at least 3 tokens.")
        if not self.targets:
            raise RequestError("targets names no module; give 'all-linear' or module names such as q_proj.")


def suited_rate(lm: LanguageModel) -> float:
    """The learning rate that suits a model of this size."""
    return _SMALL_RATE if lm.is_small else _LARGE_RATE


def completion_mask(batch: TokenBatch, prompts: Sequence[str]) -> Tensor:
    """Mark the tokens that belong to the completion of `prompt + completion`: a run up to each row's end.

    A token that straddles the boundary belongs to it: the prompt alone does not hold it.

    Args:
        batch: the tokenised whole strings, B rows of n tokens.
        prompts: the B prompts with which those strings begin.

    Returns:
        bool [B, n]; false at BOS and padding.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    begun = (batch.ends > lengths[:, None]).cumsum(1) > 0
    return begun.to(batch.attention_mask.device) & batch.attention_mask.bool()


@dataclass(frozen=True)
class _Row:
    """One example in tokens: all ids, and how many of the last are to be learnt."""

    ids: Tensor  # int64 [n]
    learnt: int


def train_lora(
    lm: LanguageModel,
    examples: Sequence[Example],
    config: LoraTrainingConfig,
    *,
    seed: int,
    on_progress: OnProgress = ignore,
) -> Lora:
    """Train a LoRA of `lm` on `examples`; the model itself is as before when this returns or raises.

    AdamW with a cosine schedule; adapter weights in float32 whatever the model's dtype. The same seed,
    examples and machine give the same weights.

    Args:
        lm: the model to adapt; its weights stay frozen.
        examples: prompts with their completions; they are drawn in shuffled passes.
        config: kernel shape and schedule.
        seed: decides the initial weights, the order of the examples, and dropout.
        on_progress: gets stage `train` with `loss`, the mean of the last steps in nats a token.

    Raises:
        TaskError: no examples, an empty completion, or an example longer than `config.max_length`.
        RequestError: `config.targets` names no linear module of the model.
    """
    rows = _tokenise(lm, examples, config.max_length)
    with tempfile.TemporaryDirectory() as folder:
        devices = [lm.device] if lm.device.type == "cuda" else []
        # The lock keeps other threads from running the model while PEFT's layers are inside it.
        with lm.lock, torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.manual_seed(seed)
            with _injected(lm, config) as peft_model:
                _optimise(lm, peft_model, rows, config, seed, on_progress)
                peft_model.save_pretrained(folder, save_embedding_layers=False)
        # Read what PEFT saved through the same checks as any other adapter.
        return replace(adapters.read(folder, lm), name="trained")


def _tokenise(lm: LanguageModel, examples: Sequence[Example], max_length: int) -> list[_Row]:
    """Tokenise the whole strings and add the end of the text, which is learnt with the completion."""
    if not examples:
        raise TaskError("There are no examples to train on; give at least one prompt with its completion.")
    longest = min(max_length, lm.context_length or max_length)
    end = sorted(lm.eos_ids)[:1] if lm.tokenizer.eos_token_id is None else [lm.tokenizer.eos_token_id]
    batch = lm.encode([example.prompt + example.completion for example in examples])
    learnt = completion_mask(batch, [example.prompt for example in examples]).sum(1).tolist()
    lengths = batch.attention_mask.sum(1).tolist()
    rows = []
    for index, (ids, length) in enumerate(zip(batch.input_ids, lengths, strict=True)):
        if length + len(end) > longest:
            raise TaskError(
                f"Example {index + 1} has more than {longest} tokens; shorten it, or raise max_length "
                f"as far as {lm.name} can read."
            )
        if not learnt[index]:
            raise TaskError(f"Example {index + 1} has an empty completion: nothing can be learnt from it.")
        ids = torch.cat([ids[:length], torch.tensor(end, dtype=ids.dtype, device=ids.device)])
        rows.append(_Row(ids, learnt[index] + len(end)))
    return rows


@contextmanager
def _injected(lm: LanguageModel, config: LoraTrainingConfig) -> Iterator[PeftModel]:
    """Put PEFT's trainable layers into the model, and take them out again."""
    sites = lm.architecture.sites
    # PEFT's own `all-linear` also takes linear layers outside the blocks, which CAST does not carry.
    everywhere = config.targets == "all-linear"
    targets = [site.name for site in sites] if everywhere else [*_names(config.targets)]
    peft_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        # A whole alpha is written as an integer, which some loaders insist on.
        lora_alpha=int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        target_modules=targets,
        use_rslora=config.use_rslora,
        rank_pattern=dict(config.rank_pattern),
        lora_dropout=config.dropout,
        fan_in_fan_out=any(site.fan_in_fan_out for site in sites),
    )
    peft_model = None
    try:
        peft_model = get_peft_model(lm.model, peft_config)
        # PEFT records the folder the weights came from; the adapter must name the model as a user names it.
        peft_config.base_model_name_or_path = lm.name
        # A set by now, whose order differs from run to run; an adapter made again shall be the same file.
        peft_config.target_modules = sorted(peft_config.target_modules)
        # The base stays in eval mode: its own dropout, where it has any, is no part of the adapter.
        peft_model.eval()
        for name, module in peft_model.named_modules():
            if name.endswith("lora_dropout"):
                module.train()
        yield peft_model
    except ValueError as error:
        if peft_model is not None:
            raise
        raise RequestError(f"No LoRA can be put on {targets} of {lm.name}: {error}") from error
    finally:
        if peft_model is not None:
            peft_model.unload()
        # PEFT leaves its record on the base, and would warn of a second adapter at the next call.
        if hasattr(lm.model, "peft_config"):
            del lm.model.peft_config
        lm.model.requires_grad_(False)


def _names(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else targets


def _optimise(
    lm: LanguageModel,
    peft_model: PeftModel,
    rows: Sequence[_Row],
    config: LoraTrainingConfig,
    seed: int,
    on_progress: OnProgress,
) -> None:
    """Run the optimiser for `config.steps` steps."""
    parameters = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, min(config.warmup, config.steps), config.steps)
    mean_loss = 0.0
    for step, batch in zip(range(config.steps), _batches(rows, config.batch_size, seed), strict=False):
        loss = _completion_loss(lm, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        # A running mean over about the last twenty steps, and over all of them at first.
        mean_loss += (loss.item() - mean_loss) / min(step + 1, 20)
        on_progress(Progress("train", step + 1, config.steps, {"loss": mean_loss}))


def _batches(rows: Sequence[_Row], size: int, seed: int) -> Iterator[list[_Row]]:
    """Yield batches for ever, in shuffled passes; rows of a batch are of similar length, to pad little."""
    generator = torch.Generator().manual_seed(seed)
    # No more than a pass at once, else a batch could hold one row several times.
    count = max(1, min(_POOL, len(rows) // size))
    order: list[int] = []
    while True:
        while len(order) < count * size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        pool, order = order[: count * size], order[count * size :]
        pool.sort(key=lambda index: len(rows[index].ids))
        for batch in torch.randperm(count, generator=generator).tolist():
            yield [rows[index] for index in pool[batch * size : (batch + 1) * size]]


def _completion_loss(lm: LanguageModel, batch: Sequence[_Row]) -> Tensor:
    """Mean cross-entropy in nats over the learnt tokens of a batch; only their logits are computed.

    Where the vocabulary is large, some at a time, and once more for the gradient.
    """
    ids = torch.nn.utils.rnn.pad_sequence([row.ids for row in batch], batch_first=True)
    lengths = torch.tensor([len(row.ids) for row in batch], device=ids.device)
    learnt = torch.tensor([row.learnt for row in batch], device=ids.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    inside = place < lengths[:, None]
    rows, positions = torch.nonzero(inside & (place >= (lengths - learnt)[:, None]), as_tuple=True)

    with captured(lm, [lm.depth]) as states:
        lm.architecture.decoder(input_ids=ids, attention_mask=inside.long(), use_cache=False)
    # The token at a position is predicted one position before it.
    last, wanted = states[lm.depth][rows, positions - 1], ids[rows, positions]
    losses = lm.by_portions(partial(_surprise, lm), last, wanted)
    return torch.stack(losses).sum() / len(last)


def _surprise(lm: LanguageModel, last: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy in nats of tokens [K] behind last residuals [K, d], summed."""
    return cross_entropy(lm.architecture.logits(last).float(), wanted, reduction="sum")
