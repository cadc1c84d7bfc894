"""The pages name only options, recipe fields, modules, files and links that exist."""

import importlib.util
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from latentdiff.recipe import AutoencoderRecipe, ClassifierRecipe, DiffusionRecipe
from latentdiff.sampling.requirements import all_inputs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTERNAL = {  # options of torchrun, Slurm, img2dataset and LSUN's script
    "nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "max-restarts", "signals-to-handle",
    "standalone", "nodes", "ntasks-per-node", "gpus-per-node", "gpus-per-task", "cpus-per-task", "time", "signal",
    "requeue", "open-mode", "kill-on-bad-exit", "url_list", "input_format", "url_col", "caption_col", "output_format",
    "output_folder", "image_size", "resize_mode", "processes_count", "thread_count", "out_dir", "flat",
}  # fmt: skip
EXAMPLES = {"brightness", "npz", "mine"}  # names that the reader writes


def ids(path: Path) -> str:
    return path.name


def code_of(page: Path) -> str:
    """Code blocks and inline code of a page."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented, inline = re.findall(r"^    .*", text, re.MULTILINE), re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)
    return "\n".join([*fenced, *indented, *inline])


def known_options() -> set[str]:
    """The options of all scripts and tools, from their help texts and parsers."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "src").rglob("*.py")]
    options = {option for path in paths for option in re.findall(r"--([a-z][\w-]*)", path.read_text())}
    return options | {name.replace("_", "-") for name in all_inputs()} | EXTERNAL | EXAMPLES


def settings_classes(kind: type) -> set[type]:
    """The dataclasses that occur in the fields of a dataclass, through unions and tuples; and itself."""
    classes, queue = set(), [kind]
    while queue:
        hint = queue.pop()
        if is_dataclass(hint) and hint not in classes:
            classes.add(hint)
            queue += get_type_hints(hint).values()
        queue += get_args(hint)
    return classes


def known_fields() -> dict[str, set[str]]:
    """Section of a recipe, such as train -> names of its fields, in any of the classes that it may have."""
    sections: dict[str, set[str]] = {}
    for root in (AutoencoderRecipe, DiffusionRecipe, ClassifierRecipe):
        for name, hint in get_type_hints(root).items():
            classes = {c for part in (hint, *get_args(hint), *(b for a in get_args(hint) for b in get_args(a)))
                       if is_dataclass(part) for c in settings_classes(part)}  # fmt: skip
            sections.setdefault(name, set()).update(f.name for c in classes for f in fields(c))
    return {name: names for name, names in sections.items() if names}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_option_exists(page: Path):
    options = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", code_of(page)))
    assert not options - known_options()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_recipe_field_exists(page: Path):
    sections = known_fields()
    pattern = rf"(?<![\w./])({'|'.join(sections)})\.(?:\d\.)?([a-z]\w*)(?![\w(]|\.\w)"
    uses = re.findall(pattern, code_of(page))
    unknown = {f"{section}.{name}" for section, name in uses if name not in {*sections[section], "py", "md", "json"}}
    assert not unknown - {"data.check"}  # a module


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_module_exists(page: Path):
    for module, name in re.findall(r"python -m ([a-z][\w.]*)(?: ([a-z]\w*))?", page.read_text()):
        module = f"benchmarks.{name}" if module == "benchmarks" and name else module
        assert importlib.util.find_spec(module), f"python -m {module}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_file_and_link_exists(page: Path):
    text = page.read_text()
    links = {link.partition("#")[0] for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text)}
    assert not [link for link in links if link and not (page.parent / link).exists()]
    folders = "src|recipes|docs|tests|benchmarks"
    files = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w./-]+\.(?:py|md|json|png|svg)", text))
    assert not [name for name in files if Path(name).stem not in EXAMPLES and not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_examples_compile(page: Path):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(code, page.name, "exec")


def test_the_map_of_the_readme_is_complete():
    package = ROOT / "src" / "latentdiff"
    names = [f"{p.name}/" for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()]
    names += [p.name for p in [*package.glob("*.py"), *ROOT.glob("*.py")] if p.name != "__init__.py"]
    names += ["recipes/", "benchmarks/", "tests/", "docs/"]
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (code_map,) = [block for block in blocks if "src/latentdiff/" in block]
    assert not set(names) - set(code_map.replace("src/", "").split())


def test_an_unknown_name_is_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("`sample.py --coding exact` and `train.accumulate=2`, but not --coding in prose")
    with pytest.raises(AssertionError):
        test_every_option_exists(page)
    with pytest.raises(AssertionError):
        test_every_recipe_field_exists(page)
