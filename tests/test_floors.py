"""Imports point to a lower floor, or to another file of the same folder."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "latentdiff"
FLOORS = {
    "layers": 0, "cond": 0, "config": 0, "keyed": 0, "tiles": 0, "progress": 0,
    "replay": 0.5,
    "needs": 1, "arguments": 1, "autoencoder": 1, "diffusion": 1, "conditioning": 1, "data": 1, "training": 1,
    "cli": 2, "latent_diffusion": 2, "critic": 2, "codes": 2, "guiders": 2,
    "teacher": 3, "recipe": 3, "modelspec": 4, "build": 4, "load": 5, "classifier": 6,
    "metrics": 6, "convert": 6, "latents": 6, "screen": 6, "inputs": 6, "steering": 7, "writer": 6,
    "watch": 7,
}  # fmt: skip
NO_TORCH = ("config", "cli", "arguments", "progress", "needs", "__init__")  # --help answers at once
FILES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The folder or file of the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """The dotted names that a module imports, `from a import b` as a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(source: str) -> set[str]:
    """The folders and files of the package that a source imports."""
    names = imported(ast.parse(source))
    return {name.split(".")[1] for name in names if name.startswith("latentdiff.")} - {"__version__"}


def breaches(home: str, source: str) -> list[str]:
    return [other for other in ours(source) if other != home and FLOORS.get(other, 9) >= FLOORS[home]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    if place(path) not in ("cli", "__init__"):
        assert place(path) in FLOORS, f"{place(path)} has no floor"
        assert not breaches(place(path), path.read_text())


def test_a_breach_is_found():
    assert breaches("diffusion", "from latentdiff.conditioning.text import Text") == ["conditioning"]
    assert breaches("training", "from latentdiff import recipe") == ["recipe"]
    assert breaches("data", "def f():\n    import latentdiff.autoencoder.blocks") == ["autoencoder"]
    assert not breaches("data", "from latentdiff.data.picture import fit\nfrom latentdiff import keyed")


def test_nothing_imports_the_converters():
    scripts = PACKAGE.parent.parent.glob("*.py")
    outside = [path for path in FILES if place(path) != "convert"]
    assert not [path for path in [*outside, *scripts] if "convert" in ours(path.read_text())]


@pytest.mark.parametrize("name", NO_TORCH)
def test_what_answers_help_imports_no_torch_at_the_top(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    known = {"latentdiff", "latentdiff.config", "latentdiff.needs"}
    names = imported(top)
    assert not {name.split(".")[0] for name in names} & {"torch", "numpy", "PIL"}
    assert all(name in known or name.rpartition(".")[0] in known for name in names if name.startswith("latentdiff"))


def test_package_files_stay_empty():
    inits = [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert inits and not [path for path in inits if path.read_text().strip()]


def test_every_folder_is_a_package():
    folders = {path.parent for path in FILES}
    assert all((folder / "__init__.py").exists() for folder in folders)
