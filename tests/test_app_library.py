"""The page's backend on the real library, with tiny random models: plumbing only, no figure is quoted."""

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conftest import build_lora

from app import expanding
from app.engine import Engine, GenerateRequest
from app.expanding import translation_config
from app.facts import FitRequest, MapRequest, SamplingChoice, TranslateRequest
from app.jobs import Jobs, JobState
from app.library import CastBackend
from app.workspace import Selection
from cast import adapters
from cast.errors import Cancelled, CastError
from cast.pipeline import open_adapter, translate_adapter
from cast.progress import ignore
from cast.recipes import Quality, Recipe, TranslationConfig
from cast.runners import PlainRunner
from cast.translate import TranslatedAdapter

SAMPLING = SamplingChoice(max_tokens=4, temperature=0.0, seed=0)


@pytest.fixture(scope="module")
def chosen(tiny_model, tiny_lora, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    source, target = tiny_model("llama"), tiny_model("gpt_neox", tokenizer="unigram", width=24, depth=2)
    for lm, name in ((source, "source"), (target, "target")):
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    adapters.write(
        tiny_lora(source, roles={"q", "v"}), folder / "adapter", source, card="---\nlicense: mit\n---\n"
    )
    return Selection(*(str(folder / name) for name in ("source", "target", "adapter")), mode="hosted")


@pytest.fixture(scope="module")
def backend():
    return CastBackend()


@pytest.fixture(scope="module")
def heads(backend, chosen, tmp_path_factory):
    request = FitRequest(chosen.pair, "pocket", 1500, "affine")
    return backend.fit(request, tmp_path_factory.mktemp("heads") / "out", ignore)


@pytest.fixture(scope="module")
def loaded(backend, chosen):
    return backend.load(chosen.source), backend.load(chosen.target)


def test_facts_come_from_the_files(backend, chosen):
    source, adapter = backend.describe(chosen.source), backend.inspect(chosen.adapter, chosen.source)
    assert (source.family, source.width, source.depth, source.download_bytes) == ("llama", 32, 3, 0)
    assert adapter.targets == ("q_proj", "v_proj")
    assert [site.block for site in adapter.sites] == [1, 2, 3]
    assert max(site.effect for site in adapter.sites) == 1.0
    assert adapter.sites[0].roles == ("q_proj", "v_proj")


@pytest.mark.parametrize("several", [1, 2])
def test_the_effect_of_a_block_is_the_norm_of_its_change(backend, chosen, loaded, several, tmp_path):
    other = build_lora(loaded[0], roles={"q", "down"}, seed=5)
    adapters.write(other, tmp_path / "other", loaded[0], card="---\nlicense: gpl-3.0\n---\n")
    name = " + ".join([chosen.adapter, str(tmp_path / "other")][:several])
    lora = adapters.read(name, loaded[0])
    norms = {}
    for kernel in lora.kernels:
        norms[kernel.site.layer] = norms.get(kernel.site.layer, 0.0) + float(
            kernel.delta.double().norm() ** 2
        )
    largest = max(norms.values())
    facts = backend.inspect(name, chosen.source)
    for site in facts.sites:
        assert site.effect == pytest.approx((norms[site.block] / largest) ** 0.5, rel=1e-4)
    assert (facts.name, facts.rank) == (name, lora.rank)
    assert facts.licence == ", ".join(["mit", "gpl-3.0"][:several])


def test_several_shipped_adapters_bring_the_prompts_of_each(backend):
    both = backend.prompts("pocket:llama/mood + pocket:llama/json")
    assert both == [*backend.prompts("pocket:llama/mood"), *backend.prompts("pocket:llama/json")]
    assert len(set(both)) > len(backend.prompts("pocket:llama/mood"))


def test_heads_facts_cover_every_depth(backend, heads):
    facts = backend.heads_facts(heads)
    assert (facts.kind, facts.corpus, facts.layer_map[-1]) == ("affine", "pocket", 3)
    assert [depth.depth for depth in facts.depths] == [0, 1, 2]


def test_hosted_text_streams(backend, chosen, loaded, heads):
    source, target = loaded
    lora = backend.read_adapter(chosen.adapter, source)
    runner = backend.hosted_runner(source, target, lora, heads, None, 0.0)
    base = "".join(backend.stream(backend.plain_runner(target, None), "Mara sang", SAMPLING))
    assert "".join(backend.stream(runner, "Mara sang", SAMPLING)) == base


def test_a_translation_is_written_and_runs(backend, chosen, loaded, heads, tmp_path):
    request = TranslateRequest(Selection(chosen.source, chosen.target, chosen.adapter, "instant"), 1)
    carried = backend.translate(request, heads, tmp_path / "out", ignore)
    assert {"adapter_config.json", "adapter_model.safetensors", "cast.json", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    runner = backend.carried_runner(carried, *loaded, 1.0)
    assert isinstance("".join(backend.stream(runner, "Mara sang", SAMPLING)), str)
    assert backend.shipped_translation(request.selection, loaded[1]) is None


def test_what_may_be_expected_of_a_translation_is_told_with_what_would_help(backend):
    quality = Quality(predicted=0.09, kl_carried_base=2.0, kl_carried_adapted=0.2, endless=True)
    recipe = Recipe("compiled", "s", "", "t", "", "a", quality=quality)
    likely, endless = backend.prediction(TranslatedAdapter(recipe), prompted=False)
    assert likely.startswith("Unlikely to carry over (prediction 0.09")
    assert "an adapter of prose" in endless
    short = TranslatedAdapter(replace(recipe, quality=replace(quality, reach=0.01, strongest=("=",))))
    for prompted, what in ((False, "a few"), (True, "other")):
        *_, advice = backend.prediction(short, prompted=prompted)
        assert advice.startswith(
            "What it was fitted on hardly excites the adapter (reach 0.01; it reacts most to '=')"
        )
        assert advice.endswith(f": give {what} example prompts.")


@pytest.mark.parametrize(("mode", "segment"), [("hosted", 1), ("kernel", None), ("instant", None)])
def test_a_written_folder_opens_and_runs_as_it_was_made(
    backend, chosen, loaded, heads, tmp_path, mode, segment
):
    out, selection = tmp_path / "out", replace(chosen, mode=mode, segment=segment)
    config = TranslationConfig(mode, segment=segment, strength=0.5, site_tokens=400)
    lora = adapters.read(chosen.adapter, loaded[0])
    translate_adapter(*loaded, lora, config, heads=heads, text="pocket").save(out, loaded[1])
    opened = backend.opened(str(out))
    assert (opened.folder, opened.selection) == (str(out), selection)
    assert opened.strength == (1.0 if opened.is_plain else 0.5)
    assert opened.is_adapter_of(chosen.target) == opened.is_plain
    batch = loaded[1].encode(["Mara sang by the river."])
    there, again = (
        made.logits(batch)
        for made in (
            backend.carried_runner(backend.reopened(opened, *loaded), *loaded, opened.strength),
            open_adapter(out, loaded[1]),
        )
    )
    torch.testing.assert_close(there, again)
    assert not torch.allclose(there, PlainRunner(loaded[1]).logits(batch))


def test_what_is_no_translated_folder_opens_as_none(backend, chosen, tmp_path):
    for name in ("", "pocket:llama/mood", "me/adapter", chosen.adapter, str(tmp_path), "~nobody/x", "a\0b"):
        assert backend.opened(name) is None
    (tmp_path / "cast.json").write_text("{")
    with pytest.raises(CastError, match="cannot be read as JSON"):
        backend.opened(str(tmp_path))


def test_opening_reads_no_heads_that_are_not_there(backend, chosen, loaded, heads, tmp_path):
    lora = adapters.read(chosen.adapter, loaded[0])
    made = translate_adapter(*loaded, lora, TranslationConfig("hosted"), heads=heads, text="pocket")
    replace(made, recipe=replace(made.recipe, heads=None)).save(tmp_path / "out", loaded[1])
    with pytest.raises(CastError, match="train them in the Heads tab"):
        backend.reopened(backend.opened(str(tmp_path / "out")), *loaded)


def test_prompts_are_made_answered_and_measured_before_a_fit(backend, chosen, heads, monkeypatch):
    def few(asked):
        config = translation_config(asked)
        return replace(config, prompts_wanted=8) if asked.expand else config

    monkeypatch.setattr(expanding, "translation_config", few)
    given = ("Once upon a time\nA:", "The owl said\nA:", "In the morning\nA:")
    asked, stages = TranslateRequest(replace(chosen, mode="compiled"), 1, given), []
    found = backend.expand(asked, heads, lambda progress: stages.append(progress.stage))
    assert tuple(row.prompt for row in found.rows[:3]) == given
    assert len(found.rows) > 3
    assert {"generate", "coverage"} <= set(stages)
    assert found.excites == ("hardly" not in found.words)
    # Answers of models like these never end.
    assert "an adapter of prose" in found.warning
    edited = (given[0], "A line of my own.\nA:")
    as_edited = replace(asked, prompts=edited, expand=False)
    again = backend.expand(as_edited, heads, ignore)
    assert tuple(row.prompt for row in again.rows) == edited
    # So they are drawn, and an edit leaves those of the others alone.
    assert again.rows[0] == found.rows[0]
    assert all(row.answer for row in again.rows)

    def stop(progress):
        if progress.stage == "coverage":
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        backend.expand(replace(asked, prompts=edited, expand=False), heads, stop)
    alone = backend.expand(replace(asked, prompts=(), expand=False), heads, ignore)
    assert (alone.rows, 0 <= alone.reach <= 1) == ((), True)


def test_maps_hold_the_models_for_their_passes_alone(backend, loaded, heads, chosen):
    held, within = [], []

    @contextmanager
    def turns():
        held.append(True)
        yield
        held.pop()

    def report(progress):
        within.append(bool(held))

    lora = adapters.read(chosen.adapter, loaded[0])
    asked = MapRequest(chosen, 1, points=40, dimensions=3, method="pca")
    ((drawn,),) = backend.maps(*loaded, heads, lora, None, asked, turns, report)
    assert (len(drawn.points), drawn.method, drawn.by_heads) == (40, "pca", True)
    assert all(len(point.source) == len(point.adapted) == 3 for point in drawn.points)
    assert all(point.translated is None and point.source_shift >= 0 for point in drawn.points)
    assert {measure.name for measure in drawn.measures} == {"R²", "cosine", "k-NN overlap", "CKA"}
    along = replace(asked, view="along", dimensions=2)
    (all_depths,) = backend.maps(*loaded, heads, None, None, along, turns, report)
    assert [one.depth for one in all_depths] == list(range(loaded[1].depth + 1))
    facts = backend.layers(*loaded, heads, turns, report)
    assert len(facts.grids[0].values) == loaded[0].depth + 1
    assert within
    assert not any(within)


def test_the_engine_runs_the_real_library(backend, chosen, tmp_path):
    jobs = Jobs()
    engine = Engine(backend, jobs, tmp_path, None, kept=tmp_path / "kept")
    for segment, carried in ((None, "done"), (1, "note")):  # of states there are no heads
        asked = GenerateRequest(replace(chosen, segment=segment), 1.0, "Mara sang", SAMPLING)
        *_, shown = engine.generate(asked)
        assert [pane.state for pane in shown] == ["done", "done", "done", carried]
    assert engine.heads_facts(chosen.pair) is None
    job_id = engine.own.start(FitRequest(chosen.pair, "/no/such/file.txt", 1000, "affine"))
    while not (job := engine.job(job_id)).is_over:
        time.sleep(0.05)
    assert job.state is JobState.FAILED
    assert "/no/such/file.txt" in job.message
    jobs.close()


@pytest.mark.parametrize("name", ["/no/such/folder", "pocket:nothing", "no such/model name"])
def test_what_cannot_be_found_is_a_sentence(backend, name):
    with pytest.raises(CastError):
        backend.describe(name)
    with pytest.raises(CastError):
        backend.inspect(name, "pocket:llama")


def test_other_models_have_no_shipped_adapters(backend):
    assert backend.adapters("/some/folder") == []
    assert backend.prompts("me/adapter") == backend.hints("me/adapter") == []
    assert len(set(backend.hints("pocket:llama/mood"))) == 5
    assert set(backend.hints("pocket:llama/mood")).isdisjoint(backend.prompts("pocket:llama/mood"))
