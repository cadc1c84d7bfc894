"""The architecture: imports point to a lower floor or stay within a folder, and files and loops stay small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "latentdiff"
FLOORS = {  # an import must point to a lower number, or stay within the folder
    "rng": 0, "config": 0, "layers": 0,
    "training": 1,
    "cli": 2,
    "data": 3, "autoencoder": 3,
    "conditioning": 4,
    "diffusion": 5,
    "model": 6,
    "recipe": 7,
    "build": 8,
    "load": 9,
    "sampling": 10,
    "evaluation": 11,
    "stage_one": 12, "stage_two": 12, "convert": 12,
}  # fmt: skip
NO_TORCH = ("config", "cli", "sampling/options", "evaluation/options", "__init__")  # --help answers at once
LOOSE_MODULES = 8
MAX_LINES, MAX_LOOP_LINES = 250, 40
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The folder or loose module of the package that a file belongs to."""
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


def imported_rooms(source: str) -> set[str]:
    """The folders and loose modules of the package that a source imports."""
    names = imported(ast.parse(source))
    return {name.split(".")[1] for name in names if name.startswith("latentdiff.")} - {"__version__"}


def violations(home: str, source: str) -> list[str]:
    return [other for other in imported_rooms(source) if other != home and FLOORS.get(other, 99) >= FLOORS[home]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    if room(path) != "__init__":
        assert room(path) in FLOORS, f"{room(path)} has no floor"
        assert not violations(room(path), path.read_text())


def test_a_violation_is_reported():
    assert violations("conditioning", "from latentdiff.diffusion.unet import UNet") == ["diffusion"]
    assert violations("training", "from latentdiff import recipe") == ["recipe"]
    assert violations("data", "def f():\n    import latentdiff.autoencoder.blocks") == ["autoencoder"]
    assert not violations("data", "from latentdiff.data.image import open_image\nfrom latentdiff import rng")


def test_nothing_imports_the_converters():
    scripts = PACKAGE.parent.parent.glob("*.py")
    outside = [path for path in FILES if room(path) != "convert"]
    assert not [path for path in [*outside, *scripts] if "convert" in imported_rooms(path.read_text())]


@pytest.mark.parametrize("name", NO_TORCH)
def test_modules_that_answer_help_import_no_torch_at_the_top(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    light = {"latentdiff", "latentdiff.config", "latentdiff.cli"}
    names = imported(top)
    assert not {name.split(".")[0] for name in names} & {"torch", "numpy", "PIL"}
    assert all(name in light or name.rpartition(".")[0] in light for name in names if name.startswith("latentdiff"))


def test_package_files_stay_empty():
    inits = [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert inits and not [path for path in inits if path.read_text().strip()]


def test_every_folder_is_a_package():
    folders = {path.parent for path in FILES}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_few_modules_lie_outside_of_the_folders():
    loose = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE_MODULES, loose


def test_no_file_is_long():
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: n for name, n in lines.items() if n > MAX_LINES}


@pytest.mark.parametrize("script", ["train_autoencoder.py", "train_diffusion.py"])
def test_the_training_loop_fits_on_a_screen_and_shows_the_step(script):
    source = (PACKAGE.parent.parent / script).read_text()
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    loop = next(node for node in functions["train"].body if isinstance(node, ast.For))
    assert loop.end_lineno - loop.lineno < MAX_LOOP_LINES
    text = ast.get_source_segment(source, loop)
    step = ["forward_backward(", "clip_grad_norm_(", "optimizer.step()", "ema.update(", "zero_grad("]
    positions = [text.index(line) for line in step]
    assert positions == sorted(positions)
    inner = ast.get_source_segment(source, functions["forward_backward"])
    assert inner.index("ddp(") < inner.index("backward(", inner.index("ddp("))
