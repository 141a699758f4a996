"""Reads the imports of `cast` and `app` and holds the layers of docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN_IN_CAST = {"gradio", "plotly", "app"}
# Only in the bodies of `cast app`, `cast manifold` and `cast layers` does `cast` reach for the page.
FACE = "cast.commands.page"


def layers() -> list[set[str]]:
    """The layers as docs/architecture.md writes them, topmost first."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = re.search(r"`(app, cli →.*?)`", text, re.DOTALL)
    assert block, "docs/architecture.md no longer holds the line of layers"
    names = []
    for layer in block.group(1).replace("\n", " ").split("→"):
        members: set[str] = set()
        for entry in layer.split(","):
            head, *rest = entry.strip().split("/")
            members.update([head] + [f"{head.rpartition('.')[0]}.{name}" for name in rest])
        names.append(members)
    return names


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_key(module: str) -> str:
    """`cast.pocket.world` is `pocket.world` in the line of layers; everything in `app` is `app`."""
    return "app" if module.split(".")[0] == "app" else module.removeprefix("cast.")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def rank_of(module: str) -> int | None:
    for rank, members in enumerate(layers()):
        if layer_key(module) in members:
            return rank
    return None


@pytest.mark.parametrize("path", sources("cast"), ids=module_name)
def test_every_module_has_a_layer(path: Path) -> None:
    module = module_name(path)
    if module in {"cast", "cast.__main__", "cast.pocket"}:
        pytest.skip("a package's face or an entry point")
    assert rank_of(module) is not None, f"{module} stands in no layer of docs/architecture.md"


@pytest.mark.parametrize("path", sources("cast"), ids=module_name)
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
    own = rank_of(module)
    if own is None:
        pytest.skip("a package's face or an entry point")
    for imported in imports(path):
        if not imported.startswith("cast.") or imported == module:
            continue
        below = rank_of(imported)
        if below is not None:
            assert below >= own, f"{module} imports {imported}, which lies above it"


@pytest.mark.parametrize("path", sources("cast"), ids=module_name)
def test_the_core_knows_no_page(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path, top_level_only=module_name(path) == FACE)}
    assert not found & FORBIDDEN_IN_CAST


def test_the_core_uses_neither_pickle_nor_remote_code() -> None:
    for path in sources("cast") + sources("app"):
        text = path.read_text(encoding="utf-8")
        assert "pickle" not in {name.split(".")[0] for name in imports(path)}, path
        assert not re.search(r"trust_remote_code\s*=\s*True", text), path
        assert not re.search(r"torch\.load\(", text), path


def test_modules_are_of_a_size_one_can_read() -> None:
    long = {
        module_name(path): lines
        for path in sources("cast") + sources("app")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert not long
