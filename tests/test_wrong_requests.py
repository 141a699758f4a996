"""Wrong requests on the command line: each exits with 2, says one sentence, and leaves nothing behind.

Wrong adapters and models have their own table in `test_wrong_input.py`.
"""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cast.cli import EXIT_REQUEST, main
from cast.pocket import registry

PAIR = ["--source", "pocket:llama", "--target", "pocket:mistral"]
TRANSLATE = ["translate", *PAIR, "--adapter", "pocket:llama/mood"]


@dataclass(frozen=True)
class Wrong:
    """A row: `{tmp}` in an argument is the test's own folder, which `prepare` fills."""

    name: str
    arguments: tuple[str, ...]
    said: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None


def file(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return write


def heads(source: str, target: str, *, revised: bool = False) -> Callable[[Path], None]:
    """A copy of shipped heads in `{tmp}/heads`; `revised` makes them ones of other source weights."""

    def copy(folder: Path) -> None:
        shutil.copytree(registry.heads_folder(source, target), folder / "heads")
        if revised:
            path = folder / "heads" / "heads.json"
            document = json.loads(path.read_text(encoding="utf-8"))
            document["source"]["fingerprint"] = "0" * len(document["source"]["fingerprint"])
            path.write_text(json.dumps(document), encoding="utf-8")

    return copy


def full_folder(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "kept.txt").write_text("kept")


OUT = ("--out", "{tmp}/out")
ROWS = (
    Wrong("no such model", ("translate", "--source", "pocket:lama", "--target", "pocket:mistral",
                            "--adapter", "pocket:llama/mood", *OUT), ("lama",)),
    Wrong("missing folder", ("evaluate", "--model", "{tmp}/nothing", "--data", "pocket:mood"),
          ("does not exist",)),
    Wrong("no such task", ("evaluate", "--model", "pocket:llama", "--data", "pocket:nothing"),
          ("nothing", "mood")),
    Wrong("adapter of another model", (*TRANSLATE[:-1], "pocket:neox/mood", *OUT), ("neox",)),
    Wrong("heads of another pair", (*TRANSLATE, "--heads", "{tmp}/heads", *OUT), ("neox",),
          heads("qwen", "neox")),
    Wrong("heads of another revision", (*TRANSLATE, "--heads", "{tmp}/heads", *OUT), ("pocket:llama",),
          heads("llama", "mistral", revised=True)),
    Wrong("heads that are none", (*TRANSLATE, "--heads", "{tmp}", *OUT), ("heads",)),
    Wrong("missing corpus", ("fit", *PAIR, "--corpus", "{tmp}/nothing.txt", *OUT), ("nothing.txt",)),
    Wrong("empty corpus", ("fit", *PAIR, "--corpus", "{tmp}/empty.txt", *OUT), ("holds no text",),
          file("empty.txt", "")),
    Wrong("short corpus", ("fit", *PAIR, "--corpus", "{tmp}/short.txt", *OUT), ("aligned tokens",),
          file("short.txt", "Mia went to the cave. She found a lamp.\n\n" * 3)),
    Wrong("output folder in use", (*TRANSLATE, *OUT), ("not empty",), full_folder),
    Wrong("output is a file", (*TRANSLATE, "--out", "{tmp}/out.txt"), ("is a file",),
          file("out.txt", "kept")),
    Wrong("segment without hosted", (*TRANSLATE, "--segment", "2", *OUT), ("--mode hosted",)),
    Wrong("segment that is no number",
          (*TRANSLATE, "--mode", "hosted", "--segment", "two", *OUT), ("'all'",)),
    Wrong("no steps", (*TRANSLATE, "--steps", "0", *OUT), ("steps",)),
    Wrong("no rounds", (*TRANSLATE, "--rounds", "0", *OUT), ("rounds",)),
    Wrong("strength that is no number", (*TRANSLATE, "--strength", "nan", *OUT), ("strength",)),
    Wrong("missing prompts", (*TRANSLATE, "--prompts", "{tmp}/nothing.txt", *OUT), ("nothing.txt",)),
    Wrong("empty prompts", (*TRANSLATE, "--prompts", "{tmp}/p.txt", *OUT), ("no prompt",),
          file("p.txt", "\n\n")),
    Wrong("no such method", ("compare", *PAIR, "--adapter", "pocket:llama/mood", "--data", "pocket:mood",
                             "--methods", "magic"), ("magic", "hosted")),
    Wrong("two references", ("compare", *PAIR, "--adapter", "pocket:llama/mood", "--data", "pocket:mood",
                             "--retrained", "a", "--train", "b"), ("choose one",)),
    Wrong("task file with a bad line", ("evaluate", "--model", "pocket:llama", "--data", "{tmp}/t.jsonl"),
          ("line 2",), file("t.jsonl", '{"prompt": "a", "completion": "b"}\nnot json\n')),
    Wrong("no such device", ("generate", "--model", "pocket:llama", "--prompt", "One", "--device", "warp"),
          ("warp", "--device cpu")),
    Wrong("temperature below zero",
          ("generate", "--model", "pocket:llama", "--prompt", "One", "--temperature", "-1"),
          ("temperature",)),
    Wrong("depth that is not there", ("manifold", *PAIR, "--layer", "99", "--out", "{tmp}/map.html"),
          ("99",)),
    Wrong("search while offline", ("search", "owner/model"), ("cannot be reached",)),
    Wrong("push of nothing", ("push", "{tmp}/nothing", "owner/name"), ("nothing",)),
)  # fmt: skip


def everything_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_wrong_request(
    row: Wrong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAST_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    row.prepare(work)
    before = everything_in(work)
    assert main([argument.replace("{tmp}", str(work)) for argument in row.arguments]) == EXIT_REQUEST
    captured = capsys.readouterr()
    assert captured.err.startswith("cast: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    for words in row.said:
        assert words in captured.err
    assert everything_in(work) == before


def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cast import translate

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(translate.Path, "write_text", full)
    arguments = [*TRANSLATE, "--mode", "hosted", "--out", str(tmp_path / "out")]
    assert main(arguments) == EXIT_REQUEST
    assert "No space is left" in capsys.readouterr().err
    assert everything_in(tmp_path) == set()
