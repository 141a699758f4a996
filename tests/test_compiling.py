"""The carried change is what it says, and the compiled fit follows it, from the start it is given."""

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import build_lora, build_model
from translation_fixtures import corpus, heads_for

from cast.activations import residuals
from cast.adapters import Kernel, Lora, applied
from cast.architecture import Architecture
from cast.carrying import Carrier, Objective, divergences
from cast.compiling import HELD_OUT_BATCHES, Compiled, _split, compile_lora, starting_kernels
from cast.corpus import Passage
from cast.errors import AdapterError, Cancelled, CorpusError
from cast.goals import Goal, Lesson, Outcome, Run, StatesGoal, WordsGoal
from cast.models import LanguageModel, TokenBatch
from cast.progress import Progress
from cast.recipes import Quality, TranslationConfig
from cast.runners import PlainRunner
from cast.word_teacher import Told, Wanted, WordTeacher, _answered
from cast.wording import WordedRunner

CONFIG = TranslationConfig(readout="states", steps=40, batch_size=4, max_length=128)
WORDS = replace(CONFIG, readout="words")


def fitted_to(
    carrier: Carrier,
    start: Sequence[Kernel],
    texts: Sequence[str],
    config: TranslationConfig,
    **options: Any,
) -> Compiled:
    """A fit to the goal that the configuration names."""

    def goal_on(held: Sequence[Sequence[Passage]]) -> Goal:
        states = StatesGoal(carrier, held, config, 1.0)
        if config.readout == "states":
            return states
        return WordsGoal(teacher_of(carrier), held, states)

    return compile_lora(carrier.target, goal_on, start, texts, config, **options)


def passages(count: int) -> list[Passage]:
    return [Passage(text) for text in corpus(count)]


def teacher_of(carrier: Carrier) -> WordTeacher:
    return WordTeacher(carrier.source, carrier.target, carrier.lora, WORDS)


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    return build_model("llama", "unigram", width=24, depth=2), build_model("mistral", "byte_bpe", depth=3)


@pytest.fixture(scope="module")
def carrier(models: tuple[LanguageModel, LanguageModel]) -> Carrier:
    source, target = models
    return Carrier(source, target, build_lora(source), heads_for(source, target), 128)


@pytest.fixture(scope="module")
def start(carrier: Carrier) -> tuple[Kernel, ...]:
    return starting_kernels(carrier.target, 16, seed=0)


@pytest.fixture(scope="module")
def compiled(carrier: Carrier, start: tuple[Kernel, ...]) -> Compiled:
    return fitted_to(carrier, start, corpus(80), CONFIG)


# --- the carried change


def test_the_change_is_the_decoded_difference_times_the_strength(carrier: Carrier) -> None:
    texts = corpus(3)
    batch = carrier.carry(texts, 2.0)
    tokens = carrier.source.encode(texts, max_length=128)
    depth, at = carrier.target.depth, carrier.source.depth
    with torch.no_grad():
        before = residuals(carrier.source, tokens, [at])[at]
        with applied(carrier.source, carrier.lora):
            after = residuals(carrier.source, tokens, [at])[at]
    index = 5
    row, position = int(batch.pairs.row[index]), int(batch.pairs.source_position[index])
    decode = carrier.heads.at(depth).decode
    expected = 2 * (decode(after[row, position]) - decode(before[row, position]))
    torch.testing.assert_close(batch.change[depth][index], expected, rtol=1e-4, atol=1e-5)


def test_every_token_but_bos_and_padding_is_paired_or_other(carrier: Carrier) -> None:
    batch = carrier.carry(["A 🦊 ran.", "The old owl said: late again"], 1.0)
    seen = torch.zeros_like(batch.tokens.attention_mask)
    seen[batch.pairs.row, batch.pairs.target_position] += 1
    seen[batch.other_rows, batch.other_positions] += 1
    expected = batch.tokens.attention_mask.clone()
    expected[:, 0] = 0
    assert torch.equal(seen, expected)
    assert len(batch.other_rows)


def test_only_depths_after_the_first_adapted_block_count(models: tuple[LanguageModel, LanguageModel]) -> None:
    source, target = models
    late = Lora("late", source.name, tuple(k for k in build_lora(source).kernels if k.site.layer == 2))
    heads = heads_for(source, target)
    assert Carrier(source, target, late, heads, 64).depths == tuple(
        depth for depth in range(1, 4) if heads.layer_map[depth] >= 2
    )


def test_a_target_that_makes_the_change_has_no_loss(models: tuple[LanguageModel, LanguageModel]) -> None:
    lm = models[1]
    lora = build_lora(lm)
    carrier = Carrier(lm, lm, lora, heads_for(lm, lm, identity=True), 128)
    batch = carrier.carry(corpus(4), 1.0)
    objective = Objective(lm, [batch], 0)
    with torch.no_grad():
        bare = objective(batch, residuals(lm, batch.tokens, carrier.depths))
        with applied(lm, lora):
            adapted = objective(batch, residuals(lm, batch.tokens, carrier.depths))
    assert float(bare.fvu) == pytest.approx(1, abs=1e-4)
    assert float(bare.missing) == pytest.approx(objective.effect, rel=1e-4)
    assert float(adapted.fvu) < 1e-6
    assert float(adapted.missing) < 1e-6


def test_an_adapter_without_effect_is_refused(models: tuple[LanguageModel, LanguageModel]) -> None:
    source, target = models
    nil = Lora(
        "nil", source.name, tuple(replace(k, b=torch.zeros_like(k.b)) for k in build_lora(source).kernels)
    )
    carrier = Carrier(source, target, nil, heads_for(source, target), 64)
    with pytest.raises(AdapterError, match="changes nothing"):
        Objective(target, [carrier.carry(corpus(4), 1.0)], 0)


def test_the_divergence_samples_rows_where_the_head_is_large(
    models: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = models[1]
    asked: list[int] = []
    monkeypatch.setattr("cast.carrying._logits", lambda _, hidden: asked.append(len(hidden)) or hidden)
    monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", 20 * lm.vocabulary)
    given = torch.randn(50, lm.width, requires_grad=True)
    divergences(lm, torch.randn(50, lm.width), given, torch.Generator())[0].backward()
    assert asked == [20, 20]
    assert given.grad is not None
    assert int(given.grad.abs().sum(1).count_nonzero()) == 20


def test_the_wording_does_not_count_where_the_text_ends(
    models: tuple[LanguageModel, LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = models[1]
    monkeypatch.setattr("cast.carrying._logits", lambda _, hidden: hidden)
    given = torch.randn(6, lm.vocabulary)
    ending = given.index_add(1, torch.tensor(sorted(lm.eos_ids)), torch.full((6, len(lm.eos_ids)), 9.0))
    whole, wording = divergences(lm, ending, given, torch.Generator())
    assert float(whole) > 1
    assert float(wording) == pytest.approx(0, abs=1e-6)
    _, wording = divergences(lm, ending + torch.randn_like(given), given, torch.Generator())
    assert float(wording) > 0.1


# --- the start


def test_the_start_changes_nothing_at_any_site_of_a_known_role(
    carrier: Carrier, start: tuple[Kernel, ...]
) -> None:
    assert [kernel.site for kernel in start] == list(carrier.target.architecture.sites)
    for kernel in start:
        assert kernel.rank == 16
        assert not kernel.b.any()
        assert 0.5 < kernel.a.abs().max() * kernel.site.in_features**0.5 <= 1


def test_sites_of_unknown_roles_have_kernels_where_no_role_is_known() -> None:
    lm = build_model("mistral", depth=2)
    sites = tuple(replace(site, role="other") for site in lm.architecture.sites)
    unknown: Any = SimpleNamespace(architecture=SimpleNamespace(sites=sites), device=lm.device)
    assert [kernel.site for kernel in starting_kernels(unknown, 4, seed=0)] == list(sites)
    unknown.architecture.sites = (*lm.architecture.sites[:2], *sites[2:])
    assert [kernel.site for kernel in starting_kernels(unknown, 4, seed=0)] == list(lm.architecture.sites[:2])


@pytest.mark.parametrize(("source_rank", "expected"), [(4, 16), (16, 16), (20, 32), (64, 64), (100, 100)])
def test_the_default_rank_is_one_that_is_served(source_rank: int, expected: int) -> None:
    assert TranslationConfig().served_rank(source_rank) == expected
    assert TranslationConfig(rank=5).served_rank(source_rank) == 5


# --- the fit


def test_the_fit_brings_the_target_nearer_on_held_out_text(compiled: Compiled) -> None:
    quality = compiled.quality
    assert quality.fvu is not None
    assert quality.fvu < 0.95
    assert quality.kl_carried_adapted is not None
    assert quality.kl_carried_base is not None
    assert quality.kl_carried_adapted < 0.6 * quality.kl_carried_base
    assert set(quality.fvu_by_depth) == set(quality.effect_by_depth) == {"1", "2", "3"}
    assert all(effect > 0 for effect in quality.effect_by_depth.values())
    assert compiled.tokens > 1000


def test_by_words_it_learns_to_say_what_the_hosted_source_says(
    carrier: Carrier, start: tuple[Kernel, ...]
) -> None:
    fitted = fitted_to(carrier, start, corpus(80), WORDS)
    quality = fitted.quality
    assert quality.kl_carried_adapted < 0.9 * quality.kl_carried_base
    assert set(quality.fvu_by_depth) == {"1", "2", "3"}
    # On text that no batch of the fit has held.
    batch = carrier.target.encode(corpus(6, start=200))
    real = batch.attention_mask.bool()
    wanted = WordedRunner(carrier.source, carrier.lora, carrier.target).logits(batch)[real].log_softmax(-1)

    def apart(lora: Lora | None) -> float:
        said = PlainRunner(carrier.target, lora).logits(batch)[real].log_softmax(-1)
        return float(torch.nn.functional.kl_div(said, wanted, log_target=True, reduction="batchmean"))

    assert apart(Lora("x", "x", fitted.kernels)) < 0.9 * apart(None)


def test_an_adapter_without_effect_has_nothing_to_say(
    carrier: Carrier, start: tuple[Kernel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WordTeacher, "missing", lambda *_: torch.tensor(0.0))
    with pytest.raises(AdapterError, match="changes nothing"):
        fitted_to(carrier, start, corpus(20), WORDS)


def test_of_a_large_vocabulary_the_positions_are_looked_at_where_the_adapter_moves_most(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(carrier)
    whole = teacher.tell(passages(3))
    count = len(whole.rows)
    assert count == int(whole.tokens.attention_mask.sum()) > 20
    moved = dict(zip(_places(whole), _moved_in(whole, carrier).tolist(), strict=True))
    monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", 20 * carrier.target.vocabulary)
    some = teacher.tell(passages(3))
    assert len(set(_places(some))) == len(some.wanted.ids) == 20
    assert some.weights.tolist() == pytest.approx([1.0] * 15 + [(count - 15) / 5] * 5)
    least = min(moved[place] for place in _places(some)[:15])
    assert all(value <= least + 1e-6 for place, value in moved.items() if place not in _places(some)[:15])


def logits_taken(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At how many positions a model's logits are worked out together from now on, each time."""
    sizes: list[int] = []
    logits = Architecture.logits

    def counted(self: Architecture, states: torch.Tensor) -> torch.Tensor:
        if self is lm.architecture:
            sizes.append(len(states))
        return logits(self, states)

    monkeypatch.setattr(Architecture, "logits", counted)
    return sizes


def test_long_answers_are_told_at_more_positions_than_have_logits_at_once(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(carrier)
    answers = [Passage("The owl smiled at the old mill by the river.", 3), *passages(3)]
    whole = teacher.tell(answers)
    last = residuals(carrier.target, whole.tokens, [3])[3].requires_grad_()
    speaking = int((whole.tokens.ends[0] >= 3).sum())
    assert speaking > 8

    monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", 4 * carrier.target.vocabulary)
    sizes = logits_taken(carrier.target, monkeypatch)
    found = {}
    for most in (100, 2, 1):
        monkeypatch.setattr("cast.word_teacher._TOLD_MOST", most)
        found[most] = teacher.tell(answers)
    assert [len(told.rows) for told in found.values()] == [math.ceil(speaking / 0.75), 8, 4]
    told = found[100]
    assert int((told.rows == 0).sum()) >= speaking
    assert max(sizes) <= 4
    # The same is wanted where the places are looked at a few at a time,
    at = [_places(whole).index(place) for place in _places(told)]
    torch.testing.assert_close(told.wanted.log_probs, whole.wanted.log_probs[at], atol=1e-4, rtol=1e-4)
    # and as much is missing, with the same gradient.
    whole_at = last[told.rows, told.positions]
    expected = told.missing(carrier.target.architecture.logits(whole_at))
    sizes.clear()
    missing = teacher.missing(told, last)
    torch.testing.assert_close(missing, expected)
    gradients = [torch.autograd.grad(value, last, retain_graph=True)[0] for value in (missing, expected)]
    torch.testing.assert_close(*gradients)
    assert max(sizes) <= 4


def test_short_and_long_texts_are_read_apart_and_count_by_their_positions(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = WordsGoal(teacher_of(carrier), [passages(2)])
    texts = [Passage(text) for text in ("An owl.", *corpus(1), "A fox.", " ".join(corpus(4)))]
    sizes: list[int] = []

    def run(tokens: TokenBatch, depths: Sequence[int]) -> dict[int, torch.Tensor]:
        sizes.append(len(tokens.texts))
        return residuals(carrier.target, tokens, depths)

    with torch.no_grad():
        apart = goal.on(texts)
        monkeypatch.setattr("cast.goals._by_length", lambda texts: [texts])
        together = goal.on(texts)
        torch.testing.assert_close(apart.loss(run), together.loss(run), rtol=1e-4, atol=1e-5)
    assert len(sizes) == 3
    assert sizes[2] == sizes[0] + sizes[1] == len(texts)
    assert apart.tokens == together.tokens


def test_answers_get_their_share_of_the_weight_and_are_all_looked_at(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, prompt = " ".join(corpus(2)), "The old owl said:"
    batch = [Passage(f"{prompt} late again", len(prompt)), Passage(text)]
    for budget in (1000, 20):
        monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", budget * carrier.target.vocabulary)
        told = teacher_of(carrier).tell(batch)
        ends = told.tokens.ends[told.rows, told.positions]
        answering = (told.rows == 0) & (ends >= len(prompt))
        expected = (told.tokens.ends[0] >= len(prompt)).sum()
        assert answering.sum() == expected > 2
        assert float(told.weights[answering].sum() / told.weights.sum()) == pytest.approx(0.75)
        assert float(told.weights.sum()) == pytest.approx(float(told.tokens.attention_mask.sum()))


def _places(told: Told) -> list[tuple[int, int]]:
    return list(zip(told.rows.tolist(), told.positions.tolist(), strict=True))


def _moved_in(told: Told, carrier: Carrier) -> torch.Tensor:
    """The mass that the LoRA moves in the source where each of the target's tokens ends, the long way."""
    read = carrier.source.encode(told.tokens.texts)
    plain, adapted = (PlainRunner(carrier.source, lora).logits(read) for lora in (None, carrier.lora))
    moved = (adapted.softmax(-1) - plain.softmax(-1)).clamp_min(0).sum(-1)
    ends = told.tokens.ends[told.rows, told.positions].clamp_min(0)
    found = []
    for row, end in zip(told.rows.tolist(), ends.tolist(), strict=True):
        before = (read.ends[row].clamp_min(0) <= end) & read.attention_mask[row].bool()
        found.append(moved[row, int(before.nonzero()[-1])])
    return torch.stack(found)


def test_the_same_seed_gives_the_same_kernels(carrier: Carrier, start: tuple[Kernel, ...]) -> None:
    config = replace(CONFIG, steps=6)
    first, again = (fitted_to(carrier, start, corpus(20), config) for _ in range(2))
    for one, other in zip(first.kernels, again.kernels, strict=True):
        torch.testing.assert_close(one.delta, other.delta)


def test_the_models_are_as_they_were(carrier: Carrier, compiled: Compiled) -> None:
    batch = carrier.target.encode(corpus(2))
    assert all(not p.requires_grad and p.grad is None for p in carrier.target.model.parameters())
    with torch.no_grad():
        bare = residuals(carrier.target, batch, [3])[3]
        with applied(carrier.target, Lora("x", "x", compiled.kernels)):
            assert not torch.equal(residuals(carrier.target, batch, [3])[3], bare)
        torch.testing.assert_close(residuals(carrier.target, batch, [3])[3], bare)


def test_when_nothing_improves_it_goes_on_with_the_end_of_the_schedule(
    carrier: Carrier, start: tuple[Kernel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cast.compiling._TEST_EVERY", 2)
    steps: list[int] = []
    config = replace(CONFIG, steps=60, learning_rate=1e-9)
    result = fitted_to(carrier, start, corpus(80), config, on_progress=lambda p: steps.append(p.done))
    # Patience is four tests of two steps; the last quarter is run whatever comes.
    assert steps[-1] == 60
    assert 8 + 15 <= len(steps) <= 12 + 15
    assert steps[-15:] == list(range(46, 61))
    assert result.steps <= 12


class _Scripted:
    """A goal whose held-out results are given, whatever the kernels are."""

    def __init__(self, target: LanguageModel, outcomes: Sequence[Outcome]) -> None:
        self._target, self._outcomes = target, iter(outcomes)

    def on(self, passages: Sequence[Passage]) -> Lesson:
        tokens = self._target.encode([passage.text for passage in passages])
        return Lesson(1, lambda run: run(tokens, [3])[3].square().mean())

    def measure(self, run: Run) -> Outcome:
        return next(self._outcomes)

    def quality(self, run: Run) -> Quality:
        return Quality()


@pytest.mark.parametrize(
    ("results", "steps", "best"),
    [
        ([(0.5, None)], 4, 4),
        ([(0.5, 0.95)], 4, 4),
        ([(0.5, 0.2), (0.3, 0.95)], 8, 8),
        ([(0.5, 0.2), (0.3, 0.4), (0.2, 0.6)], 12, 12),
        ([(0.5, 0.2), (0.6, 0.95)], 8, 4),
        ([(0.5, 0.2), (0.15, 0.4)], 8, 8),
    ],
)
def test_another_round_follows_while_held_out_answers_are_not_said_and_it_helps(
    carrier: Carrier,
    start: tuple[Kernel, ...],
    results: list[tuple[float, float | None]],
    steps: int,
    best: int,
) -> None:
    outcomes = [Outcome(total, total, said) for total, said in [(1.0, 0.0), *results]]
    goal, seen = _Scripted(carrier.target, outcomes), []
    fitted = compile_lora(
        carrier.target, lambda held: goal, start, corpus(20), replace(WORDS, steps=4, passes=2),
        on_progress=lambda progress: seen.append((progress.stage, progress.done)),
    )  # fmt: skip
    stages = ["compile", "compile 2", "compile 3"]
    assert seen == [(stage, step) for stage in stages[: steps // 4] for step in range(1, 5)]
    assert fitted.steps == best
    assert fitted.tokens == steps / 2  # New lessons each round, each of one token here.


def test_a_round_settles_where_its_own_results_no_longer_improve_and_the_next_goes_on_from_there(
    carrier: Carrier, start: tuple[Kernel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cast.compiling._TEST_EVERY", 1)
    # The second round begins worse than the first ended, and comes out better.
    first = [0.5, 0.6, 0.6, 0.6, 0.6, *[0.6] * 5]
    totals = [1.0, *first, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, *[0.4] * 5]
    goal, seen = _Scripted(carrier.target, [Outcome(total, total, 0.1) for total in totals]), []
    fitted = compile_lora(
        carrier.target, lambda held: goal, start, corpus(20), replace(WORDS, steps=20, rounds=2),
        on_progress=lambda progress: seen.append((progress.stage, progress.done)),
    )  # fmt: skip
    assert [step for stage, step in seen if stage == "compile"] == [1, 2, 3, 4, 5, *range(16, 21)]
    assert [step for stage, step in seen if stage == "compile 2"] == [*range(1, 11), *range(16, 21)]
    assert fitted.steps == 10 + 6


def test_held_out_answers_are_of_every_form_and_at_most_a_quarter() -> None:
    def spared(count: int) -> int:
        answers = [Passage(f"{'Owl' if place < count / 2 else 'Fox'} {place}", 3) for place in range(count)]
        held, _, left = _split(passages(20), answers, WORDS)
        apart = [answer for batch in held[HELD_OUT_BATCHES:] for answer in batch]
        assert sorted(answer.text for answer in [*apart, *left]) == sorted(answer.text for answer in answers)
        assert len(apart) <= count / 4
        if len(apart) == 8:
            assert {answer.text[:3] for answer in apart} == {"Owl", "Fox"}
        return len(apart)

    assert [spared(count) for count in (15, 16, 31, 32, 100)] == [0, 4, 4, 8, 8]


def ending(
    teacher: WordTeacher, passages: Sequence[Passage], monkeypatch: pytest.MonkeyPatch, rows: Sequence[int]
) -> Told:
    """What is told of passages of which some end: what is wanted behind their last tokens is an end."""
    told, target = teacher.tell(passages), teacher.target
    last = {int(row): int(token) for row, token in zip(told.rows, told.wanted.ids[:, 0], strict=True)}
    # The vocabularies' map stands by now, so that ends come out as they did.
    monkeypatch.setitem(target.__dict__, "eos_ids", frozenset(last[row] for row in rows))
    return teacher.tell(passages)


def test_what_follows_in_a_draw_tells_nothing_of_what_is_wanted(carrier: Carrier) -> None:
    # ` fox` is one token of the target and two of the source.
    read, told = "The village", {}
    for drawn in (False, True):
        teacher = WordTeacher(carrier.source, carrier.target, carrier.lora, WORDS, drawn=drawn)
        batch = teacher.tell([Passage(f"{read} fox"), Passage(f"{read} village")])
        at = batch.tokens.ends[batch.rows, batch.positions] == len(read)
        assert batch.rows[at].tolist() == [0, 1]
        told[drawn] = batch.wanted.log_probs[at]
    torch.testing.assert_close(told[True][0], told[True][1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(told[False][0], told[False][1], atol=1e-5, rtol=1e-4)


def test_the_word_that_follows_in_a_greedy_answer_counts_more_than_the_source_is_sure(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, start = "The owl smiled. The fox was late.", 15
    answer, teacher = [Passage(text, start)], teacher_of(carrier)
    more = teacher.tell(answer)
    monkeypatch.setattr("cast.word_teacher._ANSWERED", 1e-6)
    told = teacher.tell(answer)
    follows = told.tokens.input_ids[0].roll(-1)[told.positions, None]
    chances = [each.wanted.log_probs[:, :-1].exp() * (each.wanted.ids == follows) for each in (told, more)]
    before, after = (each.sum(-1) for each in chances)
    speaks = (told.tokens.ends[0] >= start) & (told.tokens.ends[0] < len(text))
    answering = speaks[told.positions]
    assert 0 < int(answering.sum()) < len(answering)
    assert (after > before + 0.2)[answering].any()
    torch.testing.assert_close(after[~answering], before[~answering], atol=1e-5, rtol=1e-4)


def test_the_word_that_follows_weighs_the_less_the_nearer_another_is() -> None:
    """Word 1 follows in each row; the last row does not answer."""
    chances = torch.tensor(
        [
            [0.1, 0.8, 0.1],  # It is far ahead,
            [0.5, 0.5, 0.0],  # level with another,
            [0.9, 0.1, 0.0],  # far behind,
            [1.0, 0.0, 0.0],  # or what cannot be said.
            [0.1, 0.8, 0.1],
        ]
    )
    rows = torch.arange(5)
    text = torch.tensor([[0, 1]] * 5)
    tokens = TokenBatch(("ab",) * 5, text, torch.ones_like(text), torch.tensor([[1, 2]] * 5))
    answered = _answered(chances.log(), tokens, rows, torch.zeros_like(rows), rows < 4).exp()
    weights = torch.tensor([0.6 * (1 - 0.1 / 0.8), 0.0, 0.6 * (1 - 0.1 / 0.9), 0.6, 0.0])[:, None]
    word = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(answered, (1 - weights) * chances + weights * word)
    assert answered[:4].argmax(-1).tolist()[::2] == [1, 1]


@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_what_was_answered_at_full_strength_tells_nothing_of_another(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    teacher = WordTeacher(carrier.source, carrier.target, carrier.lora, WORDS, strength=strength)
    answer = [Passage("The owl smiled. The fox was late.", 15)]
    told = teacher.tell(answer).wanted
    monkeypatch.setattr("cast.word_teacher._answered", None)
    again = teacher.tell(answer).wanted
    torch.testing.assert_close(again.log_probs, told.log_probs)


def test_an_answer_is_said_where_all_its_tokens_are_the_likeliest(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        Passage("The owl smiled. The fox", 15),
        Passage("Once upon a time.", 11),
        Passage("The village"),
    ]
    told = ending(teacher_of(carrier), answers, monkeypatch, [0, 1, 2])
    assert set(told.rows[told.answering].tolist()) == {0, 1}
    logits = torch.zeros(len(told.rows), carrier.target.vocabulary)
    logits[torch.arange(len(logits)), told.wanted.ids[:, 0].long()] = 1.0
    assert told.answers_said(logits.argmax(-1)) == [True, True]
    logits[torch.arange(len(logits))[told.answering & (told.rows == 1)][-1]] *= -1
    assert told.answers_said(logits.argmax(-1)) == [True, False]
    logits[~told.answering] *= -1  # What a prompt says is no answer.
    assert told.answers_said(logits.argmax(-1)) == [True, False]


def test_whether_answers_are_said_is_told_a_few_places_at_a_time(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(carrier)
    answers = [Passage("The owl smiled. The fox", 15), Passage("Once upon a time.", 11)]
    told = ending(teacher, answers, monkeypatch, [0, 1])
    last = residuals(carrier.target, told.tokens, [3])[3]
    likeliest = carrier.target.architecture.logits(last[told.rows, told.positions]).argmax(-1)
    # What the target says by itself, but for one answer.
    wanted = told.wanted.ids.clone()
    wanted[:, 0] = torch.where(told.rows == 0, likeliest, likeliest + 1)
    told = replace(told, wanted=replace(told.wanted, ids=wanted))
    sizes = logits_taken(carrier.target, monkeypatch)
    monkeypatch.setattr("cast.language_model._LOGITS_AT_ONCE", 2 * carrier.target.vocabulary)
    assert teacher.answers_said(told, last) == told.answers_said(likeliest) == [True, False]
    assert sum(sizes) == int(told.answering.sum()) > max(sizes) == 2


def test_an_answer_that_does_not_end_is_neither_said_nor_not(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(carrier)
    answers = [Passage("The owl smiled. The fox", 15), Passage("Once upon a time, 11", 11)]
    assert not teacher.tell(answers).answering.any()
    told = ending(teacher, answers, monkeypatch, [1])
    assert set(told.rows[told.answering].tolist()) == {1}
    # Nor is a draw, though it ends: something else might have been drawn.
    drawing = WordTeacher(carrier.source, carrier.target, carrier.lora, WORDS, drawn=True)
    assert not ending(drawing, answers, monkeypatch, [1]).answering.any()


def test_an_answer_of_which_a_position_is_left_out_does_not_count(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Passage("The owl smiled at the old mill by the river.", 3), Passage("Fox!", 3)]
    teacher = teacher_of(carrier)
    told = ending(teacher, answers, monkeypatch, [0, 1])
    assert set(told.rows[told.answering].tolist()) == {0, 1}
    count = len(told.rows)
    monkeypatch.setattr(LanguageModel, "positions_at_once", property(lambda self: count - 2))
    monkeypatch.setattr("cast.word_teacher._TOLD_MOST", 1)
    told = teacher.tell(answers)
    assert len(told.rows) == count - 2
    for row in told.rows[told.answering].unique().tolist():
        ends = told.tokens.ends[row]
        assert int((ends >= 3).sum()) == int((told.answering & (told.rows == row)).sum())
    assert 0 not in told.rows[told.answering]


def test_prompts_are_mixed_into_every_batch(
    carrier: Carrier, start: tuple[Kernel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []
    carry = Carrier.carry
    monkeypatch.setattr(
        Carrier, "carry", lambda self, texts, s: read.append(list(texts)) or carry(self, texts, s)
    )
    config = replace(CONFIG, steps=3, passes=1, prompt_share=0.25)
    fitted_to(
        carrier,
        start,
        corpus(20),
        config,
        answers=[Passage("owl or fox: owl", 11), Passage("fox or owl: fox", 11)],
    )
    fitted = read[2:]
    assert len(fitted) == 3
    assert all(sum("or" in text.split() and len(text) < 16 for text in texts) == 1 for texts in fitted)


def test_each_batch_is_told_once_and_read_as_often_as_asked(
    carrier: Carrier, start: tuple[Kernel, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []
    read: list[tuple[str, ...]] = []
    tell, missing = WordTeacher.tell, WordTeacher.missing
    monkeypatch.setattr(
        WordTeacher, "tell", lambda self, some: told.append(tuple(p.text for p in some)) or tell(self, some)
    )
    monkeypatch.setattr(
        WordTeacher,
        "missing",
        lambda self, some, last: (
            (read.append(tuple(some.tokens.texts)) if last.requires_grad else None)
            or missing(self, some, last)
        ),
    )
    # All texts are of one length, so that a batch is told in one piece.
    texts = [f"Owl {number:02d} sleeps near the mill." for number in range(40)]
    fitted = fitted_to(carrier, start, texts, replace(WORDS, steps=7, passes=3))
    fitted_on = told[2:]
    assert len(fitted_on) == len(set(fitted_on)) == 3
    assert read[:3] == fitted_on
    assert {batch: read.count(batch) for batch in fitted_on}.keys() == set(fitted_on)
    assert sorted(read.count(batch) for batch in fitted_on) == [2, 2, 3]
    assert fitted.tokens == sum(int(carrier.target.encode(batch).attention_mask.sum()) for batch in fitted_on)


def test_what_is_wanted_is_kept_by_its_likeliest_tokens_and_the_rest_in_one() -> None:
    random = torch.Generator().manual_seed(0)
    wanted, said = (4 * torch.randn(5, 700, generator=random) for _ in range(2))
    whole = torch.nn.functional.kl_div(
        said.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    kept = Wanted.of(wanted.log_softmax(-1))
    assert kept.ids.shape == (5, 256)
    assert kept.log_probs.exp().sum(-1) == pytest.approx([1.0] * 5, abs=1e-5)
    found = kept.missing(said)
    # Telling fewer tokens apart can only hide differences; here the rest holds little.
    assert (found <= whole + 1e-5).all()
    assert (found > 0.9 * whole).all()
    assert kept.missing(wanted) == pytest.approx([0.0] * 5, abs=1e-5)
    few = Wanted.of(wanted[:, :40].log_softmax(-1))
    expected = torch.nn.functional.kl_div(
        said[:, :40].log_softmax(-1), wanted[:, :40].log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(few.missing(said[:, :40]), expected)
    learnt = said[:, :40].clone().requires_grad_()
    few.missing(learnt).sum().backward()
    assert learnt.grad is not None
    assert learnt.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pull_on_logits_is_that_of_the_folded_distributions(monkeypatch, dtype) -> None:
    # Two rows at a time, and one that is left over.
    monkeypatch.setattr("cast.language_model._IN_CACHE", 2 * 700)
    random = torch.Generator().manual_seed(0)
    wanted, said = ((6 * torch.randn(5, 700, generator=random)).to(dtype) for _ in range(2))
    kept = Wanted.of(wanted.float().log_softmax(-1))
    ids = kept.ids.long()
    plain = said.float().clone().requires_grad_()
    others = plain.scatter(-1, ids, -1e30).logsumexp(-1, keepdim=True)
    spoken = torch.cat([plain.gather(-1, ids), others], -1).log_softmax(-1)
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5, 2.0])
    ((kept.log_probs.exp() * (kept.log_probs - spoken)).sum(-1) @ weights).backward()
    learnt = said.clone().requires_grad_()
    (kept.missing(learnt) @ weights).backward()
    assert plain.grad is not None
    assert plain.grad.abs().max() > 0.1
    torch.testing.assert_close(learnt.grad, plain.grad.to(dtype))


def test_too_little_text_is_refused(carrier: Carrier, start: tuple[Kernel, ...]) -> None:
    with pytest.raises(CorpusError, match="There are 8 texts"):
        fitted_to(carrier, start, corpus(8), CONFIG)
    with pytest.raises(CorpusError, match="no position"):
        fitted_to(carrier, start, [""] * 20, CONFIG)


def test_it_can_be_cancelled(carrier: Carrier, start: tuple[Kernel, ...]) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fitted_to(carrier, start, corpus(20), CONFIG, on_progress=stop)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt", "falcon"])
def test_a_family_can_be_the_target(family: str) -> None:
    source, target = build_model("llama", "unigram", width=24, depth=2), build_model(family, depth=3)
    carrier = Carrier(source, target, build_lora(source), heads_for(source, target), 64)
    config = replace(CONFIG, steps=10, learning_rate=5e-3)
    result = fitted_to(carrier, starting_kernels(target, 16, seed=0), corpus(12), config)
    assert result.quality.kl_carried_adapted is not None
    assert result.quality.kl_carried_base is not None
    assert result.quality.kl_carried_adapted < result.quality.kl_carried_base
