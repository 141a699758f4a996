"""Models and adapters on a Hub: looked at without their weights, then loaded."""

import pytest
from conftest import build_lora, build_model
from fake_hub import COMMIT, FakeRepo, reachable_hub

from cast import adapters, cli
from cast.errors import HubError, ModelError
from cast.models import describe, load
from cast.pocket import registry
from cast.recipes import read_recipe


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with reachable_hub(monkeypatch, tmp_path / "cache") as running:
        lm = build_model("llama")
        lm.model.save_pretrained(tmp_path / "model")
        lm.tokenizer.save_pretrained(tmp_path / "model")
        adapters.write(build_lora(lm), tmp_path / "adapter", lm, card="---\nlicense: mit\n---\n")
        for name in ("model", "adapter"):
            files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            running.repos[f"owner/{name}"] = FakeRepo(files)
        yield running


def weights_in(folder) -> list[str]:
    return [path.name for path in folder.rglob("*.safetensors")]


def test_a_model_is_described_before_its_weights_come(hub, tmp_path):
    summary = describe("owner/model")
    assert (summary.family, summary.width, summary.depth) == ("llama", 32, 3)
    assert summary.parameters == sum(weight.numel() for weight in build_model("llama").model.parameters())
    assert not weights_in(tmp_path / "cache")


def test_a_model_is_fetched_and_loaded_at_its_revision(hub):
    lm = load("owner/model")
    assert (lm.name, lm.revision) == ("owner/model", COMMIT)
    assert lm.fingerprint == build_model("llama").fingerprint


def test_an_adapter_is_inspected_before_its_weights_come(hub, tmp_path):
    seen = adapters.inspect("owner/adapter")
    assert (seen.ranks, seen.licence) == ((2,), "mit")
    assert not weights_in(tmp_path / "cache")
    lora = adapters.read("owner/adapter", build_model("llama"))
    assert (lora.name, lora.licence, len(lora.kernels)) == ("owner/adapter", "mit", 21)


def test_what_lacks_safetensors_is_said_to(hub):
    hub.repos["owner/model"] = FakeRepo(
        {k: v for k, v in hub.repos["owner/model"].files.items() if "safet" not in k}
    )
    hub.repos["owner/adapter"] = FakeRepo(
        {"adapter_config.json": hub.repos["owner/adapter"].files["adapter_config.json"]}
    )
    with pytest.raises(ModelError, match="safetensors"):
        describe("owner/model")
    with pytest.raises(HubError, match="adapter_model"):
        adapters.inspect("owner/adapter")
    with pytest.raises(HubError, match="nobody"):
        load("nobody/nothing")


def test_heads_on_the_hub_are_named_like_a_folder(hub, tmp_path, capsys):
    shipped = registry.heads_folder("llama", "mistral")
    hub.repos["owner/heads"] = FakeRepo({path.name: path.read_bytes() for path in shipped.iterdir()})
    asked = ["translate", "--source", "pocket:llama", "--target", "pocket:mistral", "--mode", "hosted"]
    named = ["--readout", "states", "--adapter", "pocket:llama/mood", "--out", str(tmp_path / "out")]
    assert cli.main([*asked, *named, "--heads", "owner/heads"]) == 0
    assert read_recipe(tmp_path / "out").heads == "owner/heads"
    assert cli.main(["evaluate", "--model", "pocket:mistral", "--adapter", str(tmp_path / "out"),
                     "--data", "pocket:mood", "--limit", "2"]) == 0  # fmt: skip
    hub.repos.clear()
    assert cli.main([*asked, *named[:-1], str(tmp_path / "other"), "--heads", "owner/none"]) == 2
    assert "The Hub has no repository owner/none" in capsys.readouterr().err
