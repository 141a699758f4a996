"""How sure an adapter is of a word of its own."""

import math

import pytest

from cast import adapters
from cast.pocket.tasks import TASKS
from cast.sureness import sureness


def test_sureness_is_of_the_adapted_source_and_of_no_end(llama) -> None:
    lora = adapters.read("pocket:llama/mood", llama)
    example = TASKS["mood"].test(1)[0]
    texts = [example.prompt, example.prompt + example.completion, example.prompt[:-3]]
    found = sureness(llama, lora, texts)
    # A label is sure; behind it the text ends, and all that is no end is left to chance.
    assert found[0] > -0.1
    assert found[1] < -3
    assert found == pytest.approx([sureness(llama, lora, [text])[0] for text in texts], abs=1e-4)


def test_what_the_base_would_say_as_surely_is_no_sign_of_the_adapter(llama) -> None:
    lora = adapters.read("pocket:llama/mood", llama)
    text = "Question: Who had the green drum?"
    assert sureness(llama, lora, [text, TASKS["mood"].test(1)[0].prompt])[0] == -math.inf
