"""Every recipe loads, builds, survives JSON, and every field has a meaning in the help."""

import dataclasses
import json

import pytest
import torch
from conftest import ROOT, call

from latentdiff import build, config
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_classifier
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import read_recipe
from latentdiff.data.tokenizer import CaptionTokenizer, train_wordpiece
from latentdiff.recipe import AutoencoderRecipe, ClassifierRecipe, DiffusionRecipe
from latentdiff.training import optim

ROOTS = {"autoencoder": AutoencoderRecipe, "diffusion": DiffusionRecipe, "classifier": ClassifierRecipe}
FILES = sorted(ROOT.glob("recipes/*/**/*.py"))


def read(path):
    return read_recipe(path, ROOTS[path.relative_to(ROOT).parts[1]])


def dataclasses_of(node):
    """Every dataclass of a tree."""
    if isinstance(node, tuple):
        return [inner for item in node for inner in dataclasses_of(item)]
    if not dataclasses.is_dataclass(node):
        return []
    return [node, *dataclasses_of(tuple(getattr(node, f.name) for f in dataclasses.fields(node)))]


def test_there_are_recipes_for_both_stages():
    names = {str(path.relative_to(ROOT / "recipes")) for path in FILES}
    assert {"autoencoder/demo.py", "autoencoder/tiny.py", "diffusion/demo.py", "diffusion/tiny.py"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryRecipe:
    def test_loads_and_takes_its_name_from_the_file(self, path):
        tree = read(path)
        assert tree.name.startswith(path.stem)
        assert path.read_text().startswith('"""'), "a recipe starts with a docstring"

    def test_survives_json(self, path):
        tree = read(path)
        back = config.from_dict(json.loads(json.dumps(config.to_dict(tree))), type(tree))
        assert config.checked(back, type(tree), "") == tree

    def test_every_field_has_a_meaning(self, path):
        for node in dataclasses_of(read(path)):
            missing = {f.name for f in dataclasses.fields(node)} - config.meanings(type(node)).keys()
            assert not missing, f"{type(node).__name__} has no comment at {', '.join(missing)}"

    def test_every_field_is_in_the_help(self, path, capsys):
        name = f"train_{path.relative_to(ROOT).parts[1]}"
        with pytest.raises(SystemExit) as exit_info:
            call(name, path, "train.steps=77", "--help")
        lines = capsys.readouterr().out.splitlines()
        assert not exit_info.value.code
        assert any(line.startswith("train.steps = 77") and line.endswith("optimizer steps") for line in lines)
        assert len(lines) >= sum(len(dataclasses.fields(node)) for node in dataclasses_of(read(path)))

    def test_builds_on_the_meta_device(self, path):
        tree = read(path)
        with torch.device("meta"):
            if isinstance(tree, AutoencoderRecipe):
                model = build.build_autoencoder(tree)
            elif isinstance(tree, ClassifierRecipe):
                model = build_classifier(tree, first_stage(tree))
            else:
                model = build.build_diffusion(tree, first_stage(tree), meta_tokenizer(tree))
        pixels = isinstance(tree, AutoencoderRecipe) and not tree.autoencoder.channel_mult  # no weights
        assert pixels or sum(p.numel() for p in model.parameters()) > 1000
        assert optim.lr_at(tree.train, 0) > 0

    def test_has_a_first_stage_of_the_same_size(self, path):
        tree = read(path)
        if isinstance(tree, DiffusionRecipe):
            if not tree.init:  # a fine-tuned model may have larger images
                assert first_recipe(tree).data.image_size == tree.data.image_size
            with torch.device("meta"):
                factor = first_stage(tree).factor
            assert not any(side % factor for side in tree.data.image_size)


def first_recipe(tree):
    source = tree.autoencoder.path or f"{tree.init}-autoencoder"
    stem = source.removesuffix("-autoencoder")
    return read(ROOT / source if source.endswith(".py") else next(ROOT.glob(f"recipes/autoencoder/**/{stem}.py")))


def first_stage(tree):
    return Autoencoder(first_recipe(tree).autoencoder)


def meta_tokenizer(tree):
    text = next((c for c in tree.conditions if isinstance(c, TextConfig)), None)
    return None if text is None else CaptionTokenizer(train_wordpiece(["a red star"], text.vocab_size), text.max_length)


def test_every_field_of_the_default_recipes_has_a_meaning():
    for node in dataclasses_of((AutoencoderRecipe(), DiffusionRecipe())):
        assert {f.name for f in dataclasses.fields(node)} == config.meanings(type(node)).keys()


def test_every_field_of_every_choice_has_a_meaning():
    """Also of classes that no recipe uses: they are in the unions of the fields."""
    checked, kinds = set(), [AutoencoderRecipe, DiffusionRecipe]
    while kinds:
        kind = kinds.pop()
        if dataclasses.is_dataclass(kind) and kind not in checked:
            checked.add(kind)
            assert {f.name for f in dataclasses.fields(kind)} == config.meanings(kind).keys(), kind.__name__
            kinds += [inner for hint in config.get_type_hints(kind).values() for inner in options(hint)]
    assert len(checked) > 12


def options(hint):
    inner = config.get_args(hint)
    return [hint] if not inner else [option for part in inner for option in options(part)]
