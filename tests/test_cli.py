"""The command line as its user meets it: exit codes, what goes to stdout and what to stderr."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cast.cli import COMMANDS, EXIT_INTERRUPTED, EXIT_REQUEST, build_parser, main
from cast.commands.given import read_prompts
from cast.errors import Cancelled, RequestError

ROOT = Path(__file__).resolve().parent.parent


def test_every_command_is_backed_by_a_function() -> None:
    from cast import commands

    assert [
        command.name for command in COMMANDS if not callable(getattr(commands, command.function, None))
    ] == []


def test_a_translation_is_told_with_what_may_be_expected_of_it(monkeypatch, tmp_path) -> None:
    from cast.commands import carrying
    from cast.recipes import Quality, Recipe

    quality = Quality(
        predicted=0.1, kl_carried_base=2.0, kl_carried_adapted=0.2, reach=0.01, strongest=("=",)
    )
    made = SimpleNamespace(
        recipe=Recipe("compiled", "s", "", "t", "", "a", quality=quality), save=lambda *_: 0
    )
    monkeypatch.setattr(carrying, "load", lambda name, *_: SimpleNamespace(name=name))
    monkeypatch.setattr(carrying.adapters, "read", lambda *_: SimpleNamespace(name="a"))
    monkeypatch.setattr(carrying.pipeline, "translate_adapter", lambda *_, **__: made)
    written = tmp_path / "prompts.txt"
    written.write_text("Who sang?\n")
    for given, helps in (([], "a few (--prompts FILE)."), (["--prompts", str(written)], "it breaks.")):
        said: list[str] = []
        asked = f"translate --source s --target t --adapter a --out {tmp_path / 'out'}".split()
        carrying.translate(build_parser().parse_args([*asked, *given]), said.append, lambda _: None)
        *_, unlikely, advice = said
        assert unlikely.startswith("  Unlikely to carry over (prediction 0.10")
        assert advice.startswith("  What it was fitted on hardly excites the adapter (reach 0.01")
        assert advice.endswith(helps)


def test_a_comparison_uses_each_setting_that_it_takes(monkeypatch) -> None:
    asked: dict[str, object] = {}

    def named(names, **settings):
        asked.update(settings, names=names)
        raise RequestError("Enough.")

    monkeypatch.setattr("cast.commands.measuring.comparison.methods_named", named)
    given = ["compare", "--source=s", "--target=t", "--adapter=a", "--data=d", "--methods=compiled,hosted-2"]
    settings = {"steps": 7, "rounds": 1, "rank": 4, "strength": 2.0, "seed": 3}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main([*given, *options]) == EXIT_REQUEST
    assert asked == {"names": ["compiled", "hosted-2"], **settings}
    # Names of methods say what these would.
    for option in ("--readout=states", "--segment=2"):
        with pytest.raises(SystemExit):
            main([*given, option])


def test_help_needs_no_torch() -> None:
    code = "import sys, cast.cli; cast.cli.build_parser().format_help(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert [command.name for command in COMMANDS if command.name not in text] == []


def test_readme_and_parser_agree_on_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip().split("#")[0] for line in text.splitlines() if line.startswith("    cast ")]
    assert lines
    for line in lines:
        build_parser().parse_args(line.replace('"..."', "text").split()[1:])


@pytest.mark.parametrize(
    "arguments",
    [["fly"], ["translate", "--source", "a"], ["translate", "--mode", "magic"], []],
    ids=["unknown command", "missing arguments", "unknown mode", "nothing"],
)
def test_a_wrong_call_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == EXIT_REQUEST
    assert "usage: cast" in capsys.readouterr().err


def test_an_error_is_one_sentence_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--model", "pocket:llama", "--data", "pocket:nothing", "--json"]) == EXIT_REQUEST
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cast: ")
    assert "Traceback" not in captured.err


def test_an_interruption_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cast import commands

    for error in (KeyboardInterrupt(), Cancelled()):

        def interrupted(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(commands, "pocket", interrupted)
        assert main(["pocket", "list"]) == EXIT_INTERRUPTED
        assert "Interrupted" in capsys.readouterr().err


def test_an_adapter_of_the_zoo_is_inspected_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "pocket:llama/mood", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "pocket:llama/mood"


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pocket", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {model["name"] for model in listed["models"]} >= {"pocket:llama", "pocket:mistral"}


def test_prompts_are_read_a_line_each_or_from_a_task_file(tmp_path: Path) -> None:
    plain, task = tmp_path / "prompts.txt", tmp_path / "task.jsonl"
    plain.write_text("Word: owl\\nKind:\n\nWord: oak\\nKind:\n")
    task.write_text(
        '{"prompt": "Word: owl\\nKind:", "completion": " animal"}\n\n{"prompt": "Word: oak\\nKind:"}\n'
    )
    assert read_prompts(str(plain)) == read_prompts(str(task)) == ("Word: owl\nKind:", "Word: oak\nKind:")
    for line in ('{"text": "Word"}', '{"prompt": 7}'):
        task.write_text('{"prompt": "Word"}\n' + line)
        with pytest.raises(RequestError, match=r"task\.jsonl, line 2: `prompt` is missing or not a string\."):
            read_prompts(str(task))
    task.write_text('{"prompt": ""}')
    with pytest.raises(RequestError, match=r"line 1: the prompt is empty\."):
        read_prompts(str(task))
    task.write_text("\n")
    with pytest.raises(RequestError, match="holds no prompt"):
        read_prompts(str(task))
