"""Every recipe loads, builds, survives JSON, and says what each of its fields means."""

import dataclasses
import json

import pytest
import torch
from conftest import ROOT, call

from latentdiff import build, config, recipe
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_classifier
from latentdiff.recipe import ClassifierRecipe
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import read_recipe
from latentdiff.data.tokenizer import CaptionTokenizer, train_wordpiece
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import optim

ROOTS = {"autoencoder": AutoencoderRecipe, "diffusion": DiffusionRecipe, "classifier": ClassifierRecipe}
FILES = sorted(ROOT.glob("recipes/*/**/*.py"))


def read(path):
    return read_recipe(path, ROOTS[path.relative_to(ROOT).parts[1]])


def places(node):
    """Every dataclass of a tree."""
    if isinstance(node, tuple):
        return [place for item in node for place in places(item)]
    if not dataclasses.is_dataclass(node):
        return []
    return [node, *places(tuple(getattr(node, f.name) for f in dataclasses.fields(node)))]


def test_there_are_recipes_for_both_stages():
    names = {str(path.relative_to(ROOT / "recipes")) for path in FILES}
    assert {"autoencoder/demo.py", "autoencoder/tiny.py", "diffusion/demo.py", "diffusion/tiny.py"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryRecipe:
    def test_loads_and_takes_its_name_from_the_file(self, path):
        tree = read(path)
        assert tree.name.startswith(path.stem)
        assert path.read_text().startswith('"""'), "a recipe says what it is for"

    def test_survives_json(self, path):
        tree = read(path)
        back = config.from_dict(json.loads(json.dumps(config.to_dict(tree))), type(tree))
        assert config.checked(back, type(tree), "") == tree

    def test_says_what_every_field_means(self, path):
        for node in places(read(path)):
            missing = {f.name for f in dataclasses.fields(node)} - config.meanings(type(node)).keys()
            assert not missing, f"{type(node).__name__} does not say what {', '.join(missing)} means"

    def test_shows_every_field_in_its_help(self, path, capsys):
        name = f"train_{path.relative_to(ROOT).parts[1]}"
        with pytest.raises(SystemExit) as leaving:
            call(name, path, "train.steps=77", "--help")
        lines = capsys.readouterr().out.splitlines()
        assert not leaving.value.code
        assert any(line.startswith("train.steps = 77") and line.endswith("optimiser steps") for line in lines)
        assert len(lines) >= sum(len(dataclasses.fields(node)) for node in places(read(path)))

    def test_builds_on_the_meta_device(self, path):
        tree = read(path)
        with torch.device("meta"):
            if isinstance(tree, AutoencoderRecipe):
                model = build.build_autoencoder(tree)
            elif isinstance(tree, ClassifierRecipe):
                model = build_classifier(tree, first_stage(tree))
            else:
                model = build.build_diffusion(tree, first_stage(tree), meta_tokenizer(tree))
        pixels = isinstance(tree, AutoencoderRecipe) and not tree.autoencoder.channel_mult  # which have no weights
        assert pixels or sum(p.numel() for p in model.parameters()) > 1000
        assert optim.rate(tree.train, 0) > 0

    def test_has_a_first_stage_of_the_same_size(self, path):
        tree = read(path)
        if isinstance(tree, DiffusionRecipe):
            if not tree.init:  # one that goes on from another may draw larger pictures
                assert recipe.size_of(first_recipe(tree)) == tree.data.image_size
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


def test_defaults_of_both_roots_say_what_every_field_means():
    for node in places((AutoencoderRecipe(), DiffusionRecipe())):
        assert {f.name for f in dataclasses.fields(node)} == config.meanings(type(node)).keys()


def test_every_choice_of_a_field_says_what_its_fields_mean():
    """Also the classes that no recipe uses yet: they are in the unions of the fields."""
    seen, kinds = set(), [AutoencoderRecipe, DiffusionRecipe]
    while kinds:
        kind = kinds.pop()
        if dataclasses.is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            assert {f.name for f in dataclasses.fields(kind)} == config.meanings(kind).keys(), kind.__name__
            kinds += [inner for hint in config.get_type_hints(kind).values() for inner in options(hint)]
    assert len(seen) > 12


def options(hint):
    inner = config.get_args(hint)
    return [hint] if not inner else [option for part in inner for option in options(part)]
