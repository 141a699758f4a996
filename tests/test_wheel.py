"""The wheel that `pip install .` makes: it holds what the code opens, and the code finds it there."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What the page and the zoo open, asked of the installed code itself.
_FOUND = """
from app import theme
from cast.pocket import registry

print(theme.launch_options()["css_paths"].is_file(), "<svg" in theme.logo())
print((theme.assets_folder() / "showcase.json").is_file())
print(registry.resolve("pocket:llama").is_dir(), len(registry.adapters()) > 0)
print(theme.__file__, registry.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_everything_that_the_code_opens_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assets = [path for path in (ROOT / "assets").rglob("*") if path.is_file()]
    assert len(assets) > 50
    code = [path for top in ("cast", "app") for path in (ROOT / top).rglob("*.py")]
    wanted = {f"cast/{path.relative_to(ROOT)}" for path in assets} | {
        str(path.relative_to(ROOT)) for path in code
    }
    assert wanted - names == set()


def test_unpacked_code_finds_its_files_from_anywhere(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "assets").mkdir()  # of another package
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{_FOUND}"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    assert "False" not in run.stdout
    assert run.stdout.count(str(site)) == 2
