"""Making the zoo: batches that resume, a training that survives a kill, and the files it leaves."""

import itertools

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cast import adapters, models
from cast.errors import Cancelled, RequestError
from cast.pocket import build, cards, pretrain, registry
from cast.pocket.measure import competence, passes
from cast.pocket.probes import PROBE_KINDS
from cast.pocket.specs import SPECS, build_config, initialise
from cast.pocket.tasks import TASKS
from cast.pocket.tokenization import train_tokenizer
from cast.pocket.world import general_text

KINDS = [("byte-bpe", 400), ("metaspace-bpe", 500), ("unigram", 480)]
TINY = pretrain.Schedule(
    warmup=2, batch_tokens=400, short_pools=1, short_batch_tokens=200, least_level=4, most_level=4, decay=4,
    probe_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer("byte-bpe", 400, seed=0, documents=200)


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_tokenizers_restore_every_text(kind, size) -> None:
    tokenizer = train_tokenizer(kind, size, seed=0, documents=400)
    assert len(tokenizer) <= size
    prompts = [example.prompt + example.completion for task in TASKS.values() for example in task.test(5)]
    odd = ['{"é€😀"}  two\n\nlines\tand <thing> = x', "", " ", "ÄÖ 123 'THE'"]
    for text in [*itertools.islice(general_text(9), 50), *prompts, *odd]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert encoded["input_ids"][0] == tokenizer.bos_token_id
        assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text
        ends = [end for _, end in encoded["offset_mapping"][1:]]
        assert ends == sorted(ends)
        assert not text or ends[-1] == len(text)


def test_tokenizers_are_deterministic() -> None:
    first, second = (train_tokenizer("unigram", 480, seed=0, documents=200) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()


def test_a_stream_goes_on_where_it_was_left(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(pretrain, "POOL", 30)
    whole = pretrain.BatchStream(tokenizer, TINY, seed=3)
    batches = list(itertools.islice(whole, 25))
    assert whole.pool >= TINY.short_pools
    for count in (4, 20):
        left = pretrain.BatchStream(tokenizer, TINY, seed=3)
        list(itertools.islice(left, count))
        again = pretrain.BatchStream(tokenizer, TINY, seed=3, pool=left.pool, used=left.used)
        assert torch.equal(next(iter(again)), batches[count])


def test_the_rate_rises_stays_and_falls() -> None:
    assert TINY.rate(0, None) < TINY.rate(1, None) == TINY.rate(50, None) == TINY.peak
    falling = [TINY.rate(step, 10) for step in range(10, 14)]
    assert falling[0] == TINY.peak
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] > 0


@pytest.mark.parametrize("name", SPECS)
def test_attention_starts_by_passing_on_what_it_sees(name) -> None:
    spec = SPECS[name]
    model = AutoModelForCausalLM.from_config(build_config(spec, 300))
    initialise(model)
    parts = dict(model.named_modules())
    if name == "neox":
        attention = parts["gpt_neox.layers.0.attention"]
        hidden = torch.randn(2, model.config.hidden_size)
        fused = attention.query_key_value(hidden).view(2, model.config.num_attention_heads, -1)
        values = fused.chunk(3, dim=-1)[2].flatten(1)
        passed = attention.dense(values)
    else:
        attention = parts["model.layers.0.self_attn"]
        hidden = torch.randn(2, model.config.hidden_size)
        groups = model.config.num_attention_heads // model.config.num_key_value_heads
        values = attention.v_proj(hidden).view(2, model.config.num_key_value_heads, -1)
        passed = attention.o_proj(values.repeat_interleave(groups, 1).flatten(1))
    assert torch.nn.functional.cosine_similarity(passed, hidden).min() > 0.4


@pytest.fixture
def quick_training(tokenizer, monkeypatch):
    monkeypatch.setattr(pretrain, "POOL", 30)
    monkeypatch.setattr(pretrain, "train_tokenizer", lambda *args, **named: tokenizer)
    monkeypatch.setattr(pretrain, "competence", lambda *args: dict.fromkeys(PROBE_KINDS, 1.0))
    measured = {
        "architecture": "A", "parameters": 1, "layers": 1, "width": 1, "vocabulary": 1, "bits_per_byte": 1.0,
        "competence": dict.fromkeys(PROBE_KINDS, 1.0), "sample": "x",
    }  # fmt: skip
    monkeypatch.setattr(cards, "measure_base", lambda folder: measured)


def test_a_killed_training_ends_in_the_same_weights(quick_training, tmp_path) -> None:
    spec = SPECS["llama"]
    pretrain.train_base(spec, tmp_path / "whole", schedule=TINY)

    probes = 0

    def kill(progress) -> None:
        nonlocal probes
        probes += progress.stage.startswith("probe")
        if probes == 2:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        pretrain.train_base(spec, tmp_path / "again", schedule=TINY, work=tmp_path, on_progress=kill)
    assert not (tmp_path / "again").exists()
    card = pretrain.train_base(spec, tmp_path / "again", schedule=TINY, work=tmp_path)
    assert card["steps"] == 8
    whole, again = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert whole.read_bytes() == again.read_bytes()
    assert not list(tmp_path.glob("*.safetensors"))
    assert (tmp_path / "again" / registry.CARD).is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert loaded.dtype == torch.float32


def test_pieces_are_named_with_stars() -> None:
    assert build._wanted(["pocket:llama"]) == {"llama"}
    assert build._wanted(["llama/mood", "qwen"]) == {"llama/mood", "qwen"}
    assert build._wanted(["*/mood"]) == {f"{model}/mood" for model in registry.MODEL_NAMES}
    assert len(build._wanted(["neox/*"])) == len(TASKS)
    assert build._wanted(None) == build._wanted([]) >= set(registry.MODEL_NAMES)
    with pytest.raises(RequestError, match="no 'gpt'"):
        build._wanted(["gpt"])


def test_a_check_allows_its_tolerance() -> None:
    assert build.Check("x", 0.9, 0.91, 0.02).ok
    assert not build.Check("x", 0.9, 0.95, 0.02).ok


@pytest.mark.parametrize("name", registry.MODEL_NAMES)
def test_shipped_models_are_what_their_cards_say(name) -> None:
    folder = registry.resolve(f"pocket:{name}")
    card = registry.model_card(name)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == card["architecture"]
    assert sum(parameter.numel() for parameter in model.parameters()) == card["parameters"]
    assert model.dtype == torch.float32
    assert tokenizer.is_fast
    assert passes(card["competence"])
    assert passes(competence(model, tokenizer, 15), 0.9)
    text = "Mia has a kite.\n[mood] ->"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded["input_ids"][0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert encoded["offset_mapping"][-1][1] == len(text)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10 * 2**20


@pytest.mark.parametrize("adapter", ["llama/colour", "llama/pirate", "neox/who", "qwen/where"])
def test_plain_peft_gives_the_same_effect(adapter) -> None:
    """One with rsLoRA, one with `rank_pattern`, one on a fused projection, one beside q and k norms."""
    name, task = adapter.split("/")
    lm = models.load(f"pocket:{name}", device="cpu", dtype=torch.float32)
    batch = lm.encode([TASKS[task].test(1)[0].prompt])
    with torch.inference_mode():
        base = lm.model(batch.input_ids).logits
        with adapters.applied(lm, adapters.read(f"pocket:{adapter}", lm)):
            ours = lm.model(batch.input_ids).logits
        folder = registry.resolve(f"pocket:{name}")
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, registry.resolve(f"pocket:{adapter}")).eval()
        assert (base - ours).abs().max() > 1
        torch.testing.assert_close(ours, theirs(batch.input_ids).logits, atol=1e-3, rtol=1e-3)


def test_missing_heads_are_made_and_standing_ones_kept(tmp_path, monkeypatch) -> None:
    made = []

    class Fitted:
        def save(self, folder, *, replace) -> None:
            folder.mkdir(parents=True)
            (folder / "heads.json").write_text("{}")

    def fit(source, target, **_) -> Fitted:
        made.append((source, target))
        return Fitted()

    monkeypatch.setattr(build, "heads_folder", lambda source, target: tmp_path / f"{source}-to-{target}")
    monkeypatch.setattr(build, "fit_pocket_heads", fit)
    for _ in range(2):
        build.build(["llama-to-mistral", "qwen-to-neox"])
    assert made == [("llama", "mistral"), ("qwen", "neox")]
