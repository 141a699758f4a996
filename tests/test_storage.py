import errno
import os
from pathlib import Path

import pytest

from cast.errors import OutputError
from cast.storage import cache_folder, check_output_folder, write_atomically, written_folder


def write_and_raise(folder: Path, error: Exception) -> None:
    with written_folder(folder) as draft:
        (draft / "a.txt").write_text("a")
        raise error


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with written_folder(target) as draft:
        (draft / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "a.txt").read_text() == "a"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_raise(tmp_path / "out", RuntimeError("in the middle"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space is left"):
        write_and_raise(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty"):
        check_output_folder(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        check_output_folder(tmp_path / "kept.txt")
    with pytest.raises(OutputError, match="not empty"), written_folder(tmp_path):
        pass
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_a_cache_is_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with written_folder(tmp_path / "cache", replace=True) as draft:
            (draft / "a.txt").write_text(text)
    assert (tmp_path / "cache" / "a.txt").read_text() == "new"


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "x.bin", b"one")
    write_atomically(tmp_path / "a" / "x.bin", b"two")
    assert (tmp_path / "a" / "x.bin").read_bytes() == b"two"
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAST_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("CAST_CACHE")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder().name == "cast-cache"


def test_a_written_folder_may_be_read_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with written_folder(tmp_path / "out") as draft:
            (draft / "inner").mkdir()
            for name in ("a", "inner/b"):
                (draft / name).touch(mode=0o600)
    finally:
        os.umask(before)
    rights = {
        path.name: path.stat().st_mode & 0o777 for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    }
    assert rights == {"out": 0o750, "inner": 0o750, "a": 0o640, "b": 0o640}
