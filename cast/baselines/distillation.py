"""Self-generated distillation: a LoRA of the target learns what the adapted source wrote, word for word."""

from cast.baselines.registry import Given, baseline
from cast.pocket.tasks import Example
from cast.runners import PlainRunner, Runner
from cast.training import LoraTrainingConfig, suited_rate, train_lora


@baseline(
    "self-distillation",
    "arXiv 2405.17258 (Trans-LoRA): cross-entropy on synthetic prompts, labelled by the adapted source",
    prompts=True,
)
def self_distillation(given: Given) -> Runner:
    """Trained as a LoRA is on a task, the adapted source's answers being the labels.

    Prompts, rank and the steps of a round are those of `compiled` with prompts. Trans-LoRA's
    discriminator wants prompts that the adapter was trained on, of which there are none here.
    """
    config = given.config.suited(small=given.target.is_small, prompts=True)
    rank = config.served_rank(given.lora.rank)
    examples = [
        Example(passage.text[: passage.answer], passage.text[passage.answer :])
        for passage in given.answered()
    ]
    training = LoraTrainingConfig(
        rank=rank,
        alpha=float(rank),
        steps=config.steps_a_round,
        batch_size=config.batch_size,
        learning_rate=suited_rate(given.target),
    )
    return PlainRunner(given.target, train_lora(given.target, examples, training, seed=config.seed))
