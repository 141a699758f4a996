"""Train the base models of the pocket zoo from scratch.

A model trains on, by the test and not by the clock: the learning rate stays level until the competence
probes pass on held-out text, then falls to zero over a fixed number of steps. Everything is seeded.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from cast.pocket.cards import save_base
from cast.pocket.measure import competence, passes
from cast.pocket.registry import Card
from cast.pocket.specs import PocketSpec, build_config, initialise
from cast.pocket.tokenization import train_tokenizer
from cast.pocket.world import general_text
from cast.progress import OnProgress, Progress, ignore
from cast.storage import write_atomically

# Documents drawn together; those of like length share a batch.
POOL = 6000
SHORT_CHARACTERS = 150
_REPORT_EVERY = 50
# Share of right probes from which the learning rate falls; the fall itself gains the rest.
_READY = 0.93


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a base model trains."""

    peak: float = 2e-3
    warmup: int = 60
    batch_tokens: int = 1500
    short_pools: int = 2
    """So many pools of documents hold short ones only: copying is found much sooner in a short context."""
    short_batch_tokens: int = 1000
    least_level: int = 1650
    most_level: int = 9000
    decay: int = 700
    probe_every: int = 150

    def rate(self, step: int, falls_from: int | None) -> float:
        """Learning rate of a step."""
        rate = self.peak * min(1.0, (step + 1) / self.warmup)
        return rate if falls_from is None else rate * (1.0 - (step - falls_from) / self.decay)


class BatchStream:
    """Batches of whole documents of like length from the train split, padded at the end."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        schedule: Schedule,
        seed: int,
        *,
        pool: int = 0,
        used: int = 0,
    ) -> None:
        self.tokenizer, self.schedule, self.seed = tokenizer, schedule, seed
        self.pool, self.used = pool, used

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Labels (batch, tokens), -100 behind each end; the first `used` batches of `pool` are left out."""
        while True:
            for batch in itertools.islice(self._batches(), self.used, None):
                self.used += 1
                yield batch
            self.pool, self.used = self.pool + 1, 0

    def _batches(self) -> Iterator[torch.Tensor]:
        short = self.pool < self.schedule.short_pools
        texts = itertools.islice(general_text(self.seed), self.pool * POOL, (self.pool + 1) * POOL)
        if short:
            everything = general_text(self.seed + 100 + self.pool)
            texts = itertools.islice((text for text in everything if len(text) <= SHORT_CHARACTERS), POOL)
        rows = [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenizer(list(texts))["input_ids"]]
        budget = self.schedule.short_batch_tokens if short else self.schedule.batch_tokens
        return _like_lengths(rows, budget, Random(self.seed * 1000 + self.pool))


def _like_lengths(rows: list[list[int]], budget: int, rng: Random) -> Iterator[torch.Tensor]:
    """Rows of like length together, about `budget` tokens a batch, the batches in random order."""
    rng.shuffle(rows)
    rows.sort(key=len)
    groups: list[list[list[int]]] = [[]]
    for row in rows:
        if len(row) * (len(groups[-1]) + 1) > budget:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        width = max(map(len, group))
        yield torch.tensor([row + [-100] * (width - len(row)) for row in group])


def make_optimizer(model: torch.nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW: decay on the matrices of the blocks only, embeddings at half the rate."""
    named = list(model.named_parameters())
    embeddings = [p for n, p in named if p.ndim > 1 and "embed" in n]
    matrices = [p for n, p in named if p.ndim > 1 and "embed" not in n]
    vectors = [p for _, p in named if p.ndim < 2]
    groups = [
        {"params": embeddings, "weight_decay": 0.0, "share": 0.5},
        {"params": matrices, "weight_decay": 0.05, "share": 1.0},
        {"params": vectors, "weight_decay": 0.0, "share": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.peak, betas=(0.9, 0.98))


def train_base(
    spec: PocketSpec,
    folder: Path,
    *,
    schedule: Schedule | None = None,
    work: Path | None = None,
    on_progress: OnProgress = ignore,
) -> Card:
    """Train one base model, save it to `folder` and return its card.

    Args:
        spec: what to make.
        folder: where the model's files shall stand; what is there is replaced at the end.
        schedule: how long and how fast.
        work: folder for a checkpoint, from which the same call goes on after a kill; None keeps none.
        on_progress: gets stages `train NAME` (the loss) and `probe NAME` (the competence so far).
    """
    schedule = schedule or Schedule()
    torch.set_num_threads(1)
    torch.manual_seed(spec.seed)
    tokenizer = train_tokenizer(spec.tokenizer, spec.vocabulary, seed=spec.seed)
    model = AutoModelForCausalLM.from_config(build_config(spec, len(tokenizer)))
    initialise(model)
    run = _Run(model, make_optimizer(model, schedule), _Place())
    checkpoint = None if work is None else work / f"{spec.name}.safetensors"
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint, key=_key(spec, schedule))
    place = run.place
    stream = BatchStream(tokenizer, schedule, spec.seed, pool=place.pool, used=place.used)
    for labels in stream:
        if place.falls_from is not None and place.step >= place.falls_from + schedule.decay:
            break
        loss = _train_step(model, run.optimizer, labels, schedule.rate(place.step, place.falls_from))
        place.step += 1
        place.tokens += int((labels >= 0).sum())
        if place.step % _REPORT_EVERY == 0:
            on_progress(Progress(f"train {spec.name}", place.step, 0, {"loss": loss}))
        if place.step % schedule.probe_every:
            continue
        if place.falls_from is None:
            scores = competence(model, tokenizer, 100)
            on_progress(Progress(f"probe {spec.name}", place.step, 0, scores))
            ready = place.step >= schedule.least_level and passes(scores, _READY)
            if ready or place.step >= schedule.most_level:
                place.falls_from = place.step
        place.pool, place.used = stream.pool, stream.used
        if checkpoint is not None:
            run.keep(checkpoint, key=_key(spec, schedule))
    card = save_base(spec, model, tokenizer, folder, steps=place.step, tokens=place.tokens)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return card


@dataclass
class _Place:
    """How far a run is."""

    step: int = 0
    tokens: int = 0
    falls_from: int | None = None
    """Step from which the learning rate falls; None while it is level."""
    pool: int = 0
    used: int = 0


@dataclass
class _Run:
    """What a checkpoint holds: weights, the optimiser's moments, and the place in the stream."""

    model: PreTrainedModel
    optimizer: torch.optim.AdamW
    place: _Place

    def keep(self, path: Path, *, key: str) -> None:
        tensors = {f"model.{name}": value.detach() for name, value in self.model.named_parameters()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        metadata = {"key": key, "place": json.dumps(vars(self.place))}
        write_atomically(path, save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata))

    def restore(self, path: Path, *, key: str) -> None:
        """Take up a checkpoint of the same run; one of another recipe is left aside."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.place = _Place(**json.loads(metadata["place"]))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, kind = name.split(".")
                state.setdefault(int(index), {})[kind] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _key(spec: PocketSpec, schedule: Schedule) -> str:
    return hashlib.sha256(repr((spec, schedule)).encode()).hexdigest()


def _train_step(
    model: PreTrainedModel, optimizer: torch.optim.AdamW, labels: torch.Tensor, rate: float
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    logits = model(labels.clamp(min=0)).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
