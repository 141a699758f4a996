"""Each mode carries an adapter over, acts at its strength, and comes back from the folder it was saved in."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, build_lora, build_model
from safetensors.torch import save_file
from translation_fixtures import corpus, heads_for

import cast.translate
from cast import adapters
from cast.adapters import Lora
from cast.corpus import Passage
from cast.errors import AdapterError, HeadsError, OutputError, RequestError
from cast.heads import HeadSet
from cast.models import LanguageModel
from cast.pipeline import fitting_text
from cast.recipes import RECIPE_FILE, Recipe, TranslationConfig, read_recipe
from cast.runners import PlainRunner
from cast.translate import TranslatedAdapter, answered_prompts, card, load_translated, translate

MODES = ("compiled", "instant", "hosted", "kernel")
# On general text as it is: what models like these say by themselves teaches nothing in six steps.
CONFIG = TranslationConfig(steps=6, batch_size=4, site_tokens=400, learning_rate=0.02, moments=0, forms=0)
TEXTS = ["The owl smiled at the little fox.", "Once upon a time"]
Pair = tuple[LanguageModel, LanguageModel, Lora, HeadSet]


@pytest.fixture(scope="module")
def pair() -> Pair:
    source = build_model("llama", "unigram", width=24, depth=2)
    target = build_model("gpt_neox", "byte_bpe", depth=3)
    lora = replace(build_lora(source), name="hub/source-adapter", licence="apache-2.0")
    return source, target, lora, heads_for(source, target)


@pytest.fixture(scope="module")
def carried(pair: Pair) -> dict[str, TranslatedAdapter]:
    return {mode: translate(*pair, iter(corpus(40)), replace(CONFIG, mode=mode)) for mode in MODES}


@pytest.mark.parametrize("mode", MODES)
def test_it_acts_in_proportion_and_not_at_all_at_strength_zero(
    pair: Pair, carried: dict[str, TranslatedAdapter], mode: str
) -> None:
    source, target, *_ = pair
    batch = target.encode(TEXTS)
    base = PlainRunner(target).logits(batch)
    torch.testing.assert_close(
        carried[mode].runner(source, target, 0.0).logits(batch), base, rtol=1e-5, atol=1e-5
    )
    runners = [carried[mode].runner(source, target, strength) for strength in (0.01, 0.02)]
    changes = [(runner.logits(batch).log_softmax(-1) - base.log_softmax(-1)).norm() for runner in runners]
    assert changes[0] > 0
    assert float(changes[1] / changes[0]) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("mode", ["compiled", "instant", "kernel"])
def test_a_session_writes_what_the_teacher_forced_pass_predicts(
    pair: Pair, carried: dict[str, TranslatedAdapter], mode: str
) -> None:
    _, target, *_ = pair
    runner = carried[mode].runner(None, target)
    batch = target.encode(TEXTS[:1])
    expected, session, ids = runner.logits(batch)[0], runner.session(), batch.input_ids[0].tolist()
    for length in (2, 3, len(ids), 4):
        torch.testing.assert_close(
            session.next_logits(ids[:length]), expected[length - 1], rtol=1e-3, atol=1e-4
        )


def test_hosted_asks_for_its_source(pair: Pair, carried: dict[str, TranslatedAdapter]) -> None:
    with pytest.raises(RequestError, match="load the source"):
        carried["hosted"].runner(None, pair[1])


@pytest.mark.parametrize("mode", MODES)
def test_the_recipe_comes_back(
    pair: Pair, carried: dict[str, TranslatedAdapter], mode: str, tmp_path: Path
) -> None:
    source, target, lora, _ = pair
    carried[mode].save(tmp_path / "out", target)
    recipe = load_translated(tmp_path / "out")
    assert recipe == carried[mode].recipe
    assert recipe.mode == mode
    assert (recipe.source, recipe.target, recipe.adapter) == (source.name, target.name, lora.name)
    wanted = replace(CONFIG, mode=mode)
    assert recipe.to_config() == (wanted.suited(small=True, prompts=False) if mode == "compiled" else wanted)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    weights = (
        {"adapter_config.json", "adapter_model.safetensors"} if mode in {"compiled", "instant"} else set()
    )
    assert names == {RECIPE_FILE, "README.md"} | weights
    with pytest.raises(OutputError, match="not empty"):
        carried[mode].save(tmp_path / "out", target)


@pytest.mark.parametrize("mode", ["compiled", "instant"])
def test_a_plain_lora_comes_back_as_it_was(
    pair: Pair, carried: dict[str, TranslatedAdapter], mode: str, tmp_path: Path
) -> None:
    _, target, *_ = pair
    carried[mode].save(tmp_path / "out", target)
    batch = target.encode(TEXTS)
    again = PlainRunner(target, adapters.read(tmp_path / "out", target)).logits(batch)
    torch.testing.assert_close(again, carried[mode].runner(None, target).logits(batch), rtol=1e-4, atol=1e-5)


_PLAIN_PEFT = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
folder, adapter, data = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter).eval()
data = load_file(data)
with torch.no_grad():
    found = model(input_ids=data["ids"], attention_mask=data["mask"]).logits
torch.testing.assert_close(found, data["logits"], rtol=1e-3, atol=1e-4)
assert not any(name == "cast" or name.startswith("cast.") for name in sys.modules)
"""


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2"])
def test_plain_peft_gives_the_same_logits_without_cast(pair: Pair, family: str, tmp_path: Path) -> None:
    source, _, lora, _ = pair
    target = build_model(family, depth=3)
    instant = translate(
        source, target, lora, heads_for(source, target), corpus(40), replace(CONFIG, mode="instant")
    )
    instant.save(tmp_path / "adapter", target)
    target.model.save_pretrained(tmp_path / "model")
    batch = target.encode(TEXTS[:1])
    logits = instant.runner(None, target).logits(batch)
    tensors = {"ids": batch.input_ids, "mask": batch.attention_mask, "logits": logits}
    save_file(tensors, tmp_path / "data.safetensors")
    paths = [str(tmp_path / name) for name in ("model", "adapter", "data.safetensors")]
    run = [sys.executable, "-c", _PLAIN_PEFT, *paths]
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_writes_and_reads_a_translated_adapter(pair: Pair, family: str, tmp_path: Path) -> None:
    source, _, lora, _ = pair
    target = build_model(family, depth=3)
    made = translate(
        source, target, lora, heads_for(source, target), corpus(40), replace(CONFIG, mode="instant")
    )
    made.save(tmp_path / "out", target)
    batch = target.encode(TEXTS)
    again = PlainRunner(target, adapters.read(tmp_path / "out", target)).logits(batch)
    torch.testing.assert_close(again, made.runner(None, target).logits(batch), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(again, PlainRunner(target).logits(batch))


@pytest.mark.parametrize("drawn", [False, True])
def test_prose_that_does_not_end_is_learnt_more_slowly_from_what_is_told_of_draws(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    rates, teachers = [], []
    fit, teacher = cast.translate.compile_lora, cast.translate.WordTeacher

    def noted(target, goal_on, start, texts, config, **options):
        rates.append(config.learning_rate)
        return fit(target, goal_on, start, texts, config, **options)

    def told(*given, **options):
        teachers.append(options["drawn"])
        return teacher(*given, **options)

    monkeypatch.setattr(cast.translate, "compile_lora", noted)
    monkeypatch.setattr(cast.translate, "WordTeacher", told)
    monkeypatch.setattr("cast.exciting._endless", lambda source, answers: drawn)
    config = replace(CONFIG, steps=2, rounds=1, prompts_wanted=8)
    made = translate(*pair, corpus(40), config, prompts=["Name one.", "Say more."])
    assert made.recipe.quality.endless == drawn
    assert teachers == [drawn]
    assert rates == [pytest.approx(0.006 if drawn else 0.02)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_the_source(family: str) -> None:
    source = build_model(family, "unigram", width=24, depth=2)
    target = build_model("mistral", depth=3)
    heads = heads_for(source, target)
    made = translate(source, target, build_lora(source), heads, corpus(40), replace(CONFIG, mode="instant"))
    batch = target.encode(TEXTS)
    assert not torch.allclose(made.runner(None, target).logits(batch), PlainRunner(target).logits(batch))


@pytest.mark.parametrize("mode", MODES)
def test_translating_to_the_same_model_is_near_the_identity(mode: str) -> None:
    lm = build_model("llama", depth=2)
    lora = build_lora(lm)
    config = replace(CONFIG, mode=mode, steps=50, batch_size=8, segment=1, moments=0, forms=0)
    made = translate(lm, lm, lora, heads_for(lm, lm, identity=True), corpus(120), config)
    # Where a character takes several tokens, hosted blocks see its last only; so the text is plain. At BOS
    # they change nothing.
    batch = lm.encode(TEXTS)
    runners = PlainRunner(lm), PlainRunner(lm, lora), made.runner(lm, lm)
    base, expected, found = (runner.logits(batch)[batch.ends > 0] for runner in runners)
    # A fit of so few steps is near; a rotation is the identity only where outputs vary: `up` is wider than
    # its input; the others are the adapter itself.
    allowed = {"compiled": 0.5, "instant": 0.01}.get(mode, 1e-4)
    assert (found - expected).square().mean() < allowed * (base - expected).square().mean()


def test_the_strength_is_part_of_the_translation(pair: Pair) -> None:
    source, target, *_ = pair
    batch = target.encode(TEXTS)
    for mode in ("instant", "kernel", "hosted"):
        half, whole = (
            translate(*pair, corpus(40), replace(CONFIG, mode=mode, strength=strength))
            for strength in (0.5, 1.0)
        )
        torch.testing.assert_close(
            half.runner(source, target).logits(batch),
            whole.runner(source, target, 0.5).logits(batch),
            rtol=1e-3,
            atol=1e-4,
        )


def test_a_matched_strength_is_recorded() -> None:
    lm = build_model("llama", depth=2)
    heads = heads_for(lm, lm, identity=True)
    made = translate(lm, lm, build_lora(lm), heads, corpus(40), replace(CONFIG, mode="hosted", strength=None))
    assert made.recipe.strength == pytest.approx(1, rel=0.02)


def test_what_changes_nothing_is_not_written(
    pair: Pair, carried: dict[str, TranslatedAdapter], tmp_path: Path
) -> None:
    _, target, *_ = pair
    lora = carried["instant"].lora
    assert lora is not None
    nil = replace(lora, kernels=tuple(replace(k, b=torch.zeros_like(k.b)) for k in lora.kernels))
    for made in (
        replace(carried["instant"], lora=nil),
        replace(carried["hosted"], recipe=replace(carried["hosted"].recipe, strength=0.0)),
    ):
        with pytest.raises(AdapterError, match="changes nothing"):
            made.save(tmp_path / "out", target)
    assert not list(tmp_path.iterdir())


def test_heads_of_another_pair_are_refused(pair: Pair) -> None:
    source, target, lora, _ = pair
    with pytest.raises(HeadsError, match="the other way"):
        translate(source, target, lora, heads_for(target, source), corpus(40), CONFIG)


# --- recipes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no cast.json"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "not a recipe"),
        ('{"version": 99}', "format version 99"),
        ({"mode": "magic"}, "unknown mode"),
        ({"mode": ["hosted"]}, "mode has the wrong type"),
        ({"source": 3}, "source has the wrong type"),
        ({"strength": "much"}, "strength has the wrong type"),
        ({"quality": {"fvu": "low"}}, "quality has the wrong type"),
        ("x" * (1 << 20) + "x", "larger than any recipe"),
    ],
)
def test_a_recipe_that_cannot_be_trusted_is_refused(
    carried: dict[str, TranslatedAdapter],
    content: str | dict[str, object] | None,
    message: str,
    tmp_path: Path,
) -> None:
    if isinstance(content, dict):
        content = json.dumps(json.loads(carried["hosted"].recipe.to_json()) | content)
    if content is not None:
        (tmp_path / RECIPE_FILE).write_text(content)
    with pytest.raises(AdapterError, match=message):
        read_recipe(tmp_path)


def test_a_recipe_without_a_needed_field_is_refused(
    carried: dict[str, TranslatedAdapter], tmp_path: Path
) -> None:
    data = json.loads(carried["hosted"].recipe.to_json())
    del data["source"]
    (tmp_path / RECIPE_FILE).write_text(json.dumps(data))
    with pytest.raises(AdapterError, match="lacks a field"):
        read_recipe(tmp_path)


def test_a_recorded_configuration_is_checked_when_it_is_used(carried: dict[str, TranslatedAdapter]) -> None:
    recipe = replace(carried["kernel"].recipe, config={"steps": -1, "from_a_later_version": 1})
    with pytest.raises(AdapterError, match="steps is -1"):
        recipe.to_config()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "magic"),
        ("site_decode", "guess"),
        ("site_encode", "cnn"),
        ("strength", float("nan")),
        ("steps", 0),
        ("segment", 0),
        ("rank", -1),
        ("learning_rate", float("inf")),
        ("kl_weight", -1.0),
        ("prompt_share", 1.5),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field):
        TranslationConfig(**{field: value})


@pytest.mark.parametrize("mode", MODES)
def test_the_card_names_what_it_was_made_of(carried: dict[str, TranslatedAdapter], mode: str) -> None:
    recipe: Recipe = carried[mode].recipe
    text = card(recipe)
    _, metadata, body = text.split("---\n", 2)
    assert f'base_model: "{recipe.target}"' in metadata
    assert 'license: "apache-2.0"' in metadata
    assert f'source_adapter: "{recipe.adapter}"' in metadata
    assert ("library_name: peft" in metadata) == (mode in {"compiled", "instant"})
    # What is fitted to words reaches them by states of the target's own.
    assert "unexplained share" not in body
    by_states = card(replace(recipe, config={**recipe.config, "readout": "states"}))
    assert ("unexplained share" in by_states) == (mode == "compiled")


def test_a_small_target_reads_fewer_batches_more_often_in_fewer_steps() -> None:
    def steps_and_lessons(config: TranslationConfig, *, small: bool, prompts: bool) -> tuple[int | None, int]:
        suited = config.suited(small=small, prompts=prompts)
        return suited.steps, suited.lessons

    ways = [{"small": small, "prompts": prompts} for small in (True, False) for prompts in (False, True)]
    found = [steps_and_lessons(TranslationConfig(), **way) for way in ways]
    assert found == [(150, 25), (150, 25), (240, 80), (480, 120)]
    config = TranslationConfig(steps=24)
    assert [steps_and_lessons(config, **way)[1] for way in ways] == [4, 4, 8, 6]
    chosen = replace(config, passes=2, prompts_wanted=40)
    assert all(chosen.suited(**way) == chosen for way in ways)


@pytest.mark.parametrize(
    ("small", "prompts", "batches"), [(True, True, 152), (False, False, 242), (False, True, 482)]
)
def test_as_much_text_is_read_as_the_steps_of_the_target_need(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, small: bool, prompts: bool, batches: int
) -> None:
    source, target, *_ = pair
    monkeypatch.setattr("cast.corpus.general_text", lambda *_, **__: iter(corpus(1000)))
    monkeypatch.setattr(type(target), "is_small", small)
    texts = fitting_text(source, target, TranslationConfig(batch_size=2), prompts=prompts)
    assert len(texts) == 2 * batches


def test_prompts_are_made_as_many_as_suit_the_target(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, lora, _ = pair
    asked: list[int] = []

    def excited(
        source: LanguageModel, lora: Lora, prompts: Sequence[str], count: int, **_: Any
    ) -> list[Passage]:
        asked.append(count)
        return []

    monkeypatch.setattr("cast.translate.excited", excited)
    config = TranslationConfig(steps=24)
    answered_prompts(source, target, lora, ["Ben said:"], corpus(8), config)
    assert asked == [config.suited(small=True, prompts=True).prompts_for(1)] != [config.prompts_for(1)]


def test_a_fit_by_words_does_without_heads_that_leave_out_the_last_depth(pair: Pair) -> None:
    source, target, lora, heads = pair
    some = replace(heads, pairs=(*heads.pairs[:-1], None), quality=heads.quality[:-1])
    made = translate(source, target, lora, some, corpus(64), replace(CONFIG, mode="compiled"))
    assert made.recipe.quality.fvu is None
    assert made.recipe.quality.kl_carried_adapted is not None


def test_a_fit_of_few_steps_asks_for_few_prompts_and_never_drops_a_given_one() -> None:
    config = TranslationConfig()
    counts = [config.suited(small=small, prompts=True).prompts_for(5) for small in (True, False)]
    assert counts == [400, 2000]
    short = replace(config, steps=20)
    assert short.prompts_for(5) == 2 * 7 * 12
    assert short.prompts_for(300) == 300
    assert replace(config, prompts_wanted=8).prompts_for(5) == 8
