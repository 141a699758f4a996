"""An ordinary LoRA: what it learns, what it leaves alone, what it refuses."""

from dataclasses import replace

import pytest
import torch
from scoring_fixtures import WORDS, tiny_lm
from torch.nn.functional import cross_entropy

from cast.adapters import applied
from cast.errors import Cancelled, RequestError, TaskError
from cast.models import LanguageModel
from cast.pocket.tasks import Example
from cast.progress import Progress
from cast.training import LoraTrainingConfig, completion_mask, train_lora

EXAMPLES = [
    Example(f"The {word} fox sat by the {other} house. colour:", f" {word}")
    for word in WORDS
    for other in WORDS
]
SHORT = LoraTrainingConfig(rank=4, alpha=8, steps=3, batch_size=4, warmup=1)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny_lm()


def completion_loss(lm: LanguageModel, examples: list[Example]) -> float:
    """Mean cross-entropy of completion tokens and end, the long way: one row at a time, all logits."""
    losses = []
    for example in examples:
        batch = lm.encode([example.prompt + example.completion])
        ids = torch.cat([batch.input_ids[0], torch.tensor([lm.tokenizer.eos_token_id])])
        first = int(completion_mask(batch, [example.prompt])[0].nonzero()[0])
        logits = lm.model(ids[None]).logits[0]
        losses.append(cross_entropy(logits[first - 1 : -1], ids[first:], reduction="none"))
    return torch.cat(losses).mean().item()


def test_a_token_that_straddles_the_boundary_belongs_to_the_completion(lm: LanguageModel) -> None:
    """'colour' is one token of the whole string, though the prompt ends inside it."""
    batch = lm.encode(["fox col" + "our: red", "fox"])
    mask = completion_mask(batch, ["fox col", "fox"])
    learnt = lm.decode(batch.input_ids[0][mask[0]])
    assert learnt.endswith("our: red")
    assert learnt.strip() == "colour: red"
    assert not mask[:, 0].any()
    assert not mask[1].any()


def test_the_first_loss_is_that_of_the_untouched_model_on_completions(lm: LanguageModel) -> None:
    """Selecting positions before the head changes nothing, and B starts at zero."""
    examples = EXAMPLES[:4]
    seen: list[float] = []
    config = replace(SHORT, steps=1, warmup=0)
    with torch.no_grad():
        expected = completion_loss(lm, examples)
    train_lora(
        lm, examples, config, seed=0, on_progress=lambda progress: seen.append(progress.metrics["loss"])
    )
    assert seen == [pytest.approx(expected, rel=1e-5)]


def test_it_learns_the_completion_and_the_end(lm: LanguageModel) -> None:
    config = LoraTrainingConfig(rank=8, steps=150, batch_size=8, learning_rate=1e-2)
    with torch.no_grad():
        before = completion_loss(lm, EXAMPLES)
        with applied(lm, train_lora(lm, EXAMPLES, config, seed=0)):
            after = completion_loss(lm, EXAMPLES)
    assert before > 3
    assert after < 0.2


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "gemma2", "opt", "falcon"])
def test_every_family_trains(tiny_model, family: str) -> None:
    """Conv1D, fused projections, soft caps: the loss is the model's own, and every site learns."""
    lm = tiny_model(family, "unigram")
    seen: list[float] = []
    config = replace(SHORT, steps=2, warmup=0)
    with torch.no_grad():
        expected = completion_loss(lm, EXAMPLES[:4])
    lora = train_lora(
        lm, EXAMPLES[:4], config, seed=0, on_progress=lambda report: seen.append(report.metrics["loss"])
    )
    assert seen[0] == pytest.approx(expected, rel=1e-4)
    assert {kernel.site.name for kernel in lora.kernels} == {site.name for site in lm.architecture.sites}
    assert all(kernel.b.any() for kernel in lora.kernels)


def test_the_base_is_as_before(lm: LanguageModel) -> None:
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    train_lora(lm, EXAMPLES, SHORT, seed=0)
    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not hasattr(lm.model, "peft_config")


def test_the_seed_decides_everything(lm: LanguageModel) -> None:
    torch.manual_seed(1)
    first = train_lora(lm, EXAMPLES, SHORT, seed=3)
    torch.manual_seed(2)
    again, other = (train_lora(lm, EXAMPLES, SHORT, seed=seed) for seed in (3, 4))
    for one, two, three in zip(first.kernels, again.kernels, other.kernels, strict=True):
        assert torch.equal(one.b, two.b)
        assert not torch.equal(one.b, three.b)


def test_the_callers_random_numbers_are_left_alone(lm: LanguageModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    train_lora(lm, EXAMPLES, SHORT, seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_the_config_reaches_the_kernels(lm: LanguageModel) -> None:
    config = replace(
        SHORT, targets=("q_proj", "down_proj"), use_rslora=True, rank_pattern={"down_proj": 2}, dropout=0.1
    )
    lora = train_lora(lm, EXAMPLES, config, seed=0)
    assert {kernel.site.role: kernel.rank for kernel in lora.kernels} == {"q": 4, "down": 2}
    assert [kernel.scaling for kernel in lora.kernels] == pytest.approx([8 / 2, 8 / 2**0.5] * lm.depth)
    assert lora.base_model == lm.name


def test_cancelling_leaves_a_clean_model(lm: LanguageModel) -> None:
    def cancel(progress: Progress) -> None:
        raise Cancelled("enough")

    before = list(lm.model.state_dict())
    with pytest.raises(Cancelled):
        train_lora(lm, EXAMPLES, SHORT, seed=0, on_progress=cancel)
    assert list(lm.model.state_dict()) == before
    assert not hasattr(lm.model, "peft_config")


@pytest.mark.parametrize(
    ("examples", "config", "error", "message"),
    [
        ([], SHORT, TaskError, "no examples"),
        ([Example("The fox", "")], SHORT, TaskError, "Example 1 has an empty completion"),
        ([*EXAMPLES, Example("fox " * 90, "red")], SHORT, TaskError, "Example 26 has more than 64 tokens"),
        (EXAMPLES, replace(SHORT, targets=("no_such_proj",)), RequestError, "No LoRA can be put on"),
    ],
    ids=["none", "empty", "long", "targets"],
)
def test_what_cannot_be_trained_is_refused(lm, examples, config, error, message) -> None:
    with pytest.raises(error, match=message):
        train_lora(lm, examples, replace(config, max_length=64), seed=0)
    assert not hasattr(lm.model, "peft_config")


@pytest.mark.parametrize(
    "wrong",
    [{"rank": 0}, {"learning_rate": float("nan")}, {"dropout": 1.0}, {"targets": ()}, {"max_length": 2}],
)
def test_a_config_that_cannot_train_is_refused(wrong: dict) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        LoraTrainingConfig(**wrong)
