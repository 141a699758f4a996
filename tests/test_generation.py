"""Generation: batches equal streams, seeds decide, characters come whole, texts end where they should."""

from collections.abc import Callable

import pytest
import torch
from conftest import FAMILIES, TOKENIZERS
from hypothesis import given, settings
from hypothesis import strategies as st

from cast.errors import Cancelled, RequestError
from cast.generation import Sampling, drawn, generate, generate_many
from cast.models import LanguageModel
from cast.progress import Progress
from cast.runners import PlainRunner
from cast.transcript import Transcript

PROMPTS = [
    "Once upon",
    "",
    "The owl said: \"You're",
    "a 🦊",
    "In the morning they walked 12 miles to the",
    "naïve",
]
TEXT = "Once upon a time — “naïve” café 🦊 🦊, 12  miles\nto the village."


class Scripted:
    """A runner that wants to write certain ids after any prompt, whatever was written before."""

    def __init__(self, lm: LanguageModel, ids: list[int]) -> None:
        self.lm, self.ids = lm, ids
        self.prompt: int | None = None

    def session(self) -> "Scripted":
        self.prompt = None
        return self

    def next_logits(self, token_ids: list[int]) -> torch.Tensor:
        self.prompt = len(token_ids) if self.prompt is None else self.prompt
        logits = torch.zeros(self.lm.vocabulary)
        logits[self.ids[len(token_ids) - self.prompt]] = 10.0
        return logits


def ids_of(lm: LanguageModel, text: str) -> list[int]:
    return lm.encode([text]).input_ids[0, 1:].tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_transcript_says_the_text_and_its_ends_as_the_tokenizer_does(
    tiny_model: Callable, kind: str
) -> None:
    lm = tiny_model("llama", kind)
    text = TEXT
    if (
        kind == "char_bpe"
    ):  # It knows neither foxes nor newlines, and writes nothing for what it does not know.
        text = text.replace("🦊 🦊", "").replace("\n", " ")
    batch = lm.encode([text])
    transcript = Transcript(lm)
    ids = batch.input_ids[0].tolist()
    for stop in range(1, len(ids) + 1):
        transcript.read(ids[:stop])
        assert text.startswith(transcript.text)
    assert transcript.text == text
    offsets = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    starts = [start for start, _ in offsets[1:]] + [len(text)]
    whole = [end if start >= end else -1 for (_, end), start in zip(offsets, starts, strict=True)]
    assert transcript.ends == [-1, *whole]
    transcript.read(ids[:5])
    transcript.read(ids[:4] + ids[6:])
    again = Transcript(lm)
    again.read(ids[:4] + ids[6:])
    assert (transcript.text, transcript.ends) == (again.text, again.ends)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_are_whole_characters_and_sum_up_to_the_text(tiny_model: Callable, kind: str) -> None:
    lm = tiny_model("llama", kind)
    written = "café 🦊 — so" if kind != "char_bpe" else "café — so"
    ids = ids_of(lm, f"x {written}")[len(ids_of(lm, "x")) :]
    pieces = list(generate(Scripted(lm, [*ids, *lm.eos_ids]), "x"))
    assert "".join(pieces) == f" {written}"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert len(pieces) > 1


def test_an_unfinished_character_is_left_out(tiny_model: Callable) -> None:
    lm = tiny_model("llama", "byte_bpe")
    ids = ids_of(lm, "a🦉")
    assert len(ids) > 2
    for count in range(1, len(ids)):
        sampling = Sampling(max_new_tokens=count)
        assert "".join(generate(Scripted(lm, ids), "x", sampling)) == "a"


@pytest.mark.parametrize("stop", ["\n", "END", "N"])
def test_text_ends_before_the_stop_string_and_never_shows_its_beginning(
    tiny_model: Callable, stop: str
) -> None:
    lm = tiny_model("llama", "byte_bpe")
    for written, expected in [
        (f"so it E{stop}more", "so it E"),
        ("so it EN", "so it EN" if stop != "N" else "so it E"),
    ]:
        ids = ids_of(lm, written)
        sampling = Sampling(max_new_tokens=len(ids), stop=stop)
        assert "".join(generate(Scripted(lm, ids), "x", sampling)) == expected
        assert generate_many(Scripted(lm, ids), ["x"], max_new_tokens=len(ids), stop=stop) == [expected]


def test_text_ends_at_eos_at_the_callers_wish_and_at_the_context(tiny_model: Callable) -> None:
    lm = tiny_model("llama", "byte_bpe")
    eos = min(lm.eos_ids)
    assert "".join(generate(Scripted(lm, [*ids_of(lm, "so"), eos]), "x")) == "so"
    asked = iter([False, False, True])
    letters = [ids_of(lm, letter)[0] for letter in "abcd"]
    assert "".join(generate(Scripted(lm, letters), "x", should_stop=lambda: next(asked))) == "ab"
    endless = Scripted(lm, ids_of(lm, "a") * 300)
    written = "".join(generate(endless, "x", Sampling(max_new_tokens=1000)))
    assert len(written) == lm.context_length - 2  # BOS and the prompt
    with pytest.raises(RequestError, match="shorten"):
        list(generate(endless, "x " * 300))
    assert list(generate(endless, "x", Sampling(max_new_tokens=0))) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_writes_what_single_texts_write(
    tiny_model: Callable, tiny_lora: Callable, family: str
) -> None:
    lm = tiny_model(family)
    runner = PlainRunner(lm, tiny_lora(lm))
    alone = ["".join(generate(runner, prompt, Sampling(max_new_tokens=12, stop="e"))) for prompt in PROMPTS]
    together = generate_many(runner, PROMPTS, max_new_tokens=12, stop="e", batch_size=4)
    assert together == alone
    assert len(set(alone)) > 1


def test_a_batch_of_a_runner_that_only_has_sessions(tiny_model: Callable) -> None:
    class OnlySessions:
        def __init__(self, inner: PlainRunner) -> None:
            self.lm, self.session = inner.lm, inner.session

    runner = PlainRunner(tiny_model("llama"))
    expected = generate_many(runner, PROMPTS, max_new_tokens=6, stop="e")
    assert generate_many(OnlySessions(runner), PROMPTS, max_new_tokens=6, stop="e") == expected


def test_seeds_decide_and_equal_distributions_draw_alike(tiny_model: Callable, tiny_lora: Callable) -> None:
    lm = tiny_model("llama")
    plain, nil = PlainRunner(lm), PlainRunner(lm, tiny_lora(lm), strength=0.0)

    def text(runner: PlainRunner, seed: int) -> str:
        return "".join(
            generate(runner, "The", Sampling(max_new_tokens=15, temperature=1.0, top_p=0.9, seed=seed))
        )

    assert text(plain, 1) == text(plain, 1) == text(nil, 1)
    assert len({text(plain, seed) for seed in range(4)}) == 4


def test_what_is_drawn_for_a_prompt_is_its_own_whatever_the_others_are(tiny_model: Callable) -> None:
    runner = PlainRunner(tiny_model("llama"))

    def drawn(prompts: list[str], seed: int = 0) -> list[str]:
        return generate_many(runner, prompts, max_new_tokens=12, temperature=1.0, seed=seed, batch_size=2)

    once, again, other = drawn(["The owl", "The owl", "A fox"])
    assert len({once, again, other, *drawn(["The owl"], seed=1)}) == 4
    assert drawn(["A fox", "So", "The owl"]) == [other, drawn(["So"])[0], once]


def test_draws_follow_temperature_and_top_p(tiny_model: Callable) -> None:
    lm = tiny_model("llama", "byte_bpe")
    letters = [ids_of(lm, letter)[0] for letter in "abc"]

    class Fixed(Scripted):
        def next_logits(self, token_ids: list[int]) -> torch.Tensor:
            logits = torch.full((lm.vocabulary,), -1e9)
            logits[letters] = torch.tensor([0.5, 0.3, 0.2]).log()
            return logits

    def shares(**options: float) -> list[float]:
        text = "".join(generate(Fixed(lm, []), "", Sampling(max_new_tokens=250, seed=3, **options)))
        return [text.count(letter) / len(text) for letter in "abc"]

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.2], abs=0.07)
    assert shares(temperature=1.0, top_p=0.6) == pytest.approx([0.625, 0.375, 0], abs=0.07)
    assert shares(temperature=0.01) == [1, 0, 0]
    assert shares() == [1, 0, 0]


@settings(deadline=None)
@given(size=st.integers(1, 1600), kept=st.floats(0.002, 1.0), seed=st.integers(0, 2**20))
def test_a_draw_is_where_the_summed_shares_exceed_it(size: int, kept: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    shares = torch.rand(3, size, generator=random) * (torch.rand(3, size, generator=random) < kept)
    shares[:, seed % size] += 1e-3
    shares /= shares.sum(-1, keepdim=True)
    # The ends of the range, where rounding might lead past the last share.
    numbers = torch.tensor([0.0, float(torch.rand((), generator=random)), 1 - 2**-53], dtype=torch.float64)
    found = drawn(shares, numbers)[:, None]
    sums = shares.double().cumsum(-1)
    wanted = numbers[:, None] * sums[:, -1:]
    assert (shares.gather(1, found) > 0).all()
    assert (sums.gather(1, found) >= wanted - 1e-12).all()
    assert (sums.gather(1, found) - shares.gather(1, found) <= wanted + 1e-12).all()


def test_rows_of_the_head_without_a_token_are_never_chosen(tiny_model: Callable) -> None:
    lm = tiny_model("llama", "byte_bpe")
    wanted = ids_of(lm, "a")[0]

    class Padded(Scripted):
        def next_logits(self, token_ids: list[int]) -> torch.Tensor:
            logits = torch.zeros(len(lm.tokenizer) + 7)
            logits[wanted], logits[-7:] = 40.0, 50.0
            return logits

    for temperature in (0.0, 1.0):
        sampling = Sampling(max_new_tokens=5, temperature=temperature)
        assert "".join(generate(Padded(lm, []), "x", sampling)) == "aaaaa"


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": -1}, {"temperature": -0.1}, {"temperature": float("nan")},
        {"temperature": float("inf")}, {"top_p": 0.0}, {"top_p": 1.5}, {"stop": ""},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict) -> None:
    with pytest.raises(RequestError):
        Sampling(**options)


def test_progress_is_told_and_may_cancel(tiny_model: Callable) -> None:
    runner = PlainRunner(tiny_model("llama"))
    told: list[Progress] = []
    generate_many(runner, PROMPTS, max_new_tokens=2, batch_size=4, on_progress=told.append)
    assert {(report.stage, report.total) for report in told} == {("generate", 6)}
    done = [report.done for report in told]
    assert done == sorted(done)
    assert (4 in done, done[-1], len(done) > 2) == (True, 6, True)  # told at each step, not at each batch

    def cancel(report: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        generate_many(runner, PROMPTS, max_new_tokens=2, batch_size=4, on_progress=cancel)
    assert generate_many(runner, [], max_new_tokens=2) == []
