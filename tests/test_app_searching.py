"""Searching the Hub from the page: what is asked, what is said of a hit, and the Hub's own answers."""

import json

import pytest
from fake_backend import FakeBackend
from fake_hub import FakeRepo, reachable_hub
from test_hub import BASE, TAG, adapter

from app.library import CastBackend
from app.searching import HubSearch, may_have_adapters, words_to_search
from cast.errors import HubError


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("  qwen 0.5 ", "qwen 0.5"), ("q", ""), ("", ""), ("/models/mine", ""), ("~/mine", ""),
        ("./mine", ""), ("pocket:ll", ""), ("mine.gguf", ""), ("x" * 101, ""), ("me/model", "me/model"),
    ],
)  # fmt: skip
def test_only_what_may_be_on_the_hub_is_searched_there(typed, words):
    assert words_to_search(typed) == words


def test_only_a_hub_model_has_adapters_on_the_hub():
    assert may_have_adapters("me/base")
    assert not any(may_have_adapters(name) for name in ("pocket:llama", "/me/base", "", "base", "a/b/c"))


def test_a_list_is_asked_for_once_and_a_refusal_is_not_kept():
    backend = FakeBackend()
    search = HubSearch(backend)
    with pytest.raises(HubError):
        search.models("story")
    backend.hub = {"story": ["me/story"]}
    assert [search.models("story") for _ in range(2)][1][0].name == "me/story"
    assert search.models("Story") == search.models("story")
    assert backend.searched == ["story", "story"]


def test_hits_tell_rank_targets_downloads_and_licence(monkeypatch, tmp_path):
    with reachable_hub(monkeypatch, tmp_path) as hub:
        many = json.loads(adapter().files["adapter_config.json"]) | {"target_modules": list("abcdef")}
        hub.repos = {
            "me/poet": adapter(1234, rank=16),
            "me/wide-poet": FakeRepo({"adapter_config.json": json.dumps(many).encode()}, (TAG,), 5),
            "me/cook": adapter(9999),
            "me/story-model": FakeRepo({}, ("license:mit",), 3),
        }
        search = HubSearch(CastBackend())
        assert [hit.label for hit in search.adapters(BASE, "poet")] == [
            "me/poet · rank 16 · q, v · 1,234 downloads · mit",
            "me/wide-poet · rank 8 · a, b, c, d and 2 more · 5 downloads · no licence stated",
        ]
        assert len(search.adapters(BASE, "")) == 3
        assert [hit.label for hit in search.models("story")] == ["me/story-model · 3 downloads · mit"]


def test_without_a_connection_a_sentence_names_what_can_be_done(monkeypatch, tmp_path):
    search = HubSearch(CastBackend())
    for ask in (lambda: search.models("story"), lambda: search.adapters(BASE, "")):
        with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set, so nothing was searched.*any folder"):
            ask()
    with reachable_hub(monkeypatch, tmp_path) as hub:
        hub.status = 429
        with pytest.raises(HubError, match="asked too often"):
            search.models("story")
