"""Text that excites an adapter: example prompts without answers, made more, and answered by the source.

A few prompts tell what the adapter listens to. The source's own base model, shown some of them, writes more
of the kind; what does not take up their form gets their common ending, such as a line `Answer:`. Behind each
the source with its adapter goes on, so that a fit reads what it answers too. No label is needed anywhere.
"""

import random
from collections.abc import Sequence

from cast.adapters import Lora
from cast.generation import generate_many
from cast.models import LanguageModel
from cast.progress import OnProgress, ignore
from cast.runners import PlainRunner

# Shown to the base model at once; more leave small contexts no room to write.
_SHOTS = 3
_SEPARATOR = "\n\n"
_ANSWER_TOKENS = 32
_BATCH = 32
# A new prompt is at most so many times as long as the longest example, in characters.
_LONGER = 1.5
_ROUNDS = 2


def expanded(
    source: LanguageModel,
    prompts: Sequence[str],
    count: int,
    *,
    seed: int = 0,
    on_progress: OnProgress = ignore,
) -> list[str]:
    """The given prompts, and more of their kind that the source's base model writes.

    Args:
        source: the model without an adapter.
        prompts: examples without answers, at least one.
        count: how many there shall be in all; fewer if the model does not find the form.
        seed: of the choice of examples and of the sampling.
        on_progress: gets the stage `generate`.

    Returns:
        Distinct prompts, the given ones first.
    """
    found, spare = dict.fromkeys(prompts), dict.fromkeys(prompts)
    order = random.Random(seed)
    longest = max(map(len, prompts))
    room = int(source.encode(list(prompts)).attention_mask.sum(1).max() * _LONGER) + 8
    for turn in range(_ROUNDS):
        missing = count - len(found)
        if missing <= 0:
            break
        shown = [
            order.sample(list(prompts), min(_SHOTS, len(prompts))) for _ in range(missing + missing // 2)
        ]
        written = generate_many(
            PlainRunner(source),
            [_SEPARATOR.join(some) + _SEPARATOR for some in shown],
            max_new_tokens=room,
            stop=_SEPARATOR,
            temperature=1.0,
            seed=seed + turn,
            batch_size=_BATCH,
            on_progress=on_progress,
        )
        for text in written:
            if prompt := _shaped(text, prompts, longest):
                found[prompt] = None
            elif prompt := _grafted(text, prompts):
                spare[prompt] = None
    # A base model that does not take up the ending has at least written what may stand before it.
    return list(found | spare)[:count]


def _shaped(text: str, prompts: Sequence[str], longest: int) -> str | None:
    """A written text cut to the form that all examples share; None where it has not that form.

    The form is their common ending (such as a line `Answer:`) and their number of lines.
    """
    ending = _common_ending(prompts)
    text = text.strip("\n")
    if ending.strip():
        place = text.find(ending)
        if place <= 0:
            return None
        text = text[: place + len(ending)]
    lines = {prompt.strip("\n").count("\n") for prompt in prompts}
    if len(lines) == 1 and text.count("\n") not in lines:
        return None
    return text if 0 < len(text) <= _LONGER * longest else None


def _grafted(text: str, prompts: Sequence[str]) -> str | None:
    """A written text with the examples' common ending put behind it; None where they have none, or it."""
    ending = _common_ending(prompts)
    body = text.strip("\n").partition("\n\n")[0]
    longest = max(len(prompt) - len(ending) for prompt in prompts)
    body = (body[: body.rfind(".", 0, longest) + 1] or body[:longest]).rstrip(ending[:1])
    return body + ending if ending.strip() and body.strip() else None


def _common_ending(prompts: Sequence[str]) -> str:
    reversed_prompts = [prompt[::-1] for prompt in prompts]
    first, last = min(reversed_prompts), max(reversed_prompts)
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    if length is None:
        length = min(len(first), len(last)) if len(set(prompts)) > 1 else 0
    ending = first[:length][::-1]
    # From the beginning of a word, so that examples that happen to end alike bind no more than they must.
    starts = [i for i, letter in enumerate(ending) if not letter.isalnum()]
    return ending[starts[0] :] if starts else ""


def answered(
    source: LanguageModel, lora: Lora, prompts: Sequence[str], *, on_progress: OnProgress = ignore
) -> list[str]:
    """Each prompt with what the source and its adapter write behind it (greedy, a few dozen tokens)."""
    answers = generate_many(
        PlainRunner(source, lora),
        prompts,
        max_new_tokens=_ANSWER_TOKENS,
        batch_size=_BATCH,
        on_progress=on_progress,
    )
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
