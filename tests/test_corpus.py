"""Passages are cut at sentence ends and lose nothing; splits hold; what is wrong is said in a sentence."""

import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cast import corpus
from cast.alignment import align
from cast.corpus import general_text, is_held_out, passages, take_tokens
from cast.errors import CorpusError

SENTENCES = [f"Sentence number {n} speaks of the river, the owl and the {n} foxes." for n in range(400)]


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    paragraphs = [" ".join(SENTENCES[start : start + 5]) for start in range(0, 400, 5)]
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return path


def test_the_story_world_is_the_default_and_its_splits_differ():
    texts = list(islice(general_text(), 20))
    assert texts == list(islice(general_text("pocket", seed=0), 20))
    assert texts != list(islice(general_text(seed=1), 20))
    assert not set(texts) & set(islice(general_text(held_out=True), 200))


def test_a_file_is_cut_at_sentence_ends_and_nothing_is_lost(prose):
    texts = [*general_text(str(prose)), *general_text(str(prose), held_out=True)]
    assert all(text.endswith(".") for text in texts)
    assert sum(map(len, texts)) / len(texts) == pytest.approx(corpus.PASSAGE_CHARACTERS, rel=0.3)
    joined = " ".join(texts)
    assert all(sentence in joined for sentence in SENTENCES)


def test_the_held_out_side_is_a_tenth_by_hash_alone(prose):
    kept, held = (list(general_text(str(prose), seed=3, held_out=side)) for side in (False, True))
    assert not set(kept) & set(held)
    assert set(held) == set(general_text(str(prose), seed=4, held_out=True))
    assert sum(map(is_held_out, (f"passage {n}" for n in range(2000)))) == pytest.approx(200, abs=60)


def test_the_seed_decides_the_order_alone(prose):
    first, again, other = (list(general_text(str(prose), seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_a_folder_mixes_its_files(tmp_path, prose):
    (tmp_path / "deep").mkdir()
    lines = [json.dumps({"text": f"Line {n}: " + "many words about nothing. " * 15}) for n in range(40)]
    (tmp_path / "deep" / "more.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    (tmp_path / "ignored.csv").write_text("a,b")
    texts = list(general_text(str(tmp_path)))
    assert any("Line" in text for text in texts[:20])
    assert any("Sentence" in text for text in texts[:20])


def test_hard_line_breaks_are_undone(tmp_path):
    path = tmp_path / "wrapped.txt"
    path.write_text("One sentence that\nis wrapped. And\nanother.\n\nNext.", encoding="utf-8")
    whole = "One sentence that is wrapped. And another.\nNext."
    assert list(general_text(str(path), held_out=is_held_out(whole))) == [whole]


@settings(deadline=None)
@given(st.lists(st.text(alphabet='ab .!?"。🦊', max_size=80), max_size=8), st.integers(5, 40))
def test_passages_lose_no_sign_and_are_not_too_long(paragraphs, size):
    cut = list(passages(paragraphs, size))
    without_space = "".join("".join(cut).split())
    assert without_space == "".join("".join(paragraphs).split())
    assert all(0 < len(passage) <= 3 * size + 1 for passage in cut)
    assert all(len(passage) >= size for passage in cut[:-1])


def test_tokens_are_bounded(tiny_model):
    lm = tiny_model("llama")
    texts = take_tokens(iter(SENTENCES), lm, 500)
    count = int(lm.encode(texts).attention_mask[:, 1:].sum())
    assert 500 <= count < 500 + int(lm.encode(texts[-1:]).attention_mask.sum())
    assert texts == SENTENCES[: len(texts)]


def test_aligned_tokens_are_bounded(tiny_model):
    source, target = tiny_model("llama", "byte_bpe"), tiny_model("mistral", "unigram")
    texts = take_tokens(iter(SENTENCES), source, 300, partner=target)
    assert len(align(source.encode(texts), target.encode(texts))) >= 300
    assert len(align(source.encode(texts[:-1]), target.encode(texts[:-1]))) < 300


def test_texts_that_end_early_do_where_they_suffice(tiny_model):
    lm = tiny_model("llama")
    assert take_tokens(["", "fox", ""], lm, 10_000, at_least=1) == ["fox"]


@pytest.mark.parametrize("texts", [[], ["", ""], ["A fox."]])
def test_too_little_text_says_how_much_is_there_and_how_much_is_needed(tiny_model, texts):
    source, target = tiny_model("llama", "byte_bpe"), tiny_model("mistral", "unigram")
    there = len(align(source.encode(texts), target.encode(texts)))
    with pytest.raises(
        CorpusError, match=rf"holds {there} aligned tokens of tiny-llama and .*, but 700 are needed"
    ):
        take_tokens(texts, source, 1000, partner=target, at_least=700)


def written(folder, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (lambda folder: written(folder, "a.txt", b""), "holds no text"),
        (lambda folder: written(folder, "a.txt", b"\n \n\n"), "holds no text"),
        (lambda folder: written(folder, "a.txt", b"\xff\xfe\x00bad"), "not UTF-8"),
        (lambda folder: written(folder, "a.pdf", b"text"), "neither a .txt nor a .jsonl"),
        (
            lambda folder: written(folder, "a.jsonl", b'{"text": "a"}\n{"x": 1}'),
            "line 2: `text` is missing",
        ),
        (lambda folder: written(folder, "a.jsonl", b"nothing"), "a.jsonl, line 1: not JSON"),
        (
            lambda folder: written(folder, "a.jsonl", b'{"text": 3}'),
            "line 1: `text` is missing",
        ),
        (lambda folder: str(folder), "holds no .txt or .jsonl"),
        (lambda folder: str(folder / "missing.txt"), "There is no corpus"),
        (lambda folder: str(folder / "missing"), "There is no corpus"),
        (lambda folder: "nobody/no-such-dataset", "no dataset of this name can be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, spec, words):
    with pytest.raises(CorpusError) as caught:
        list(general_text(spec(tmp_path)))
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_dataset_of_the_hub_is_streamed(monkeypatch):
    import datasets

    rows = datasets.Dataset.from_dict(
        {"id": list(range(60)), "text": [f"Row {n}. " + "It is long enough. " * 20 for n in range(60)]}
    ).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, streaming: rows)
    texts = list(general_text("owner/name"))
    assert 40 < len(texts) <= 90
    assert any("Row 7." in text for text in texts) or any("Row 8." in text for text in texts)
