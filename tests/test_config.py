import json
from dataclasses import dataclass, field, replace

import pytest

from latentdiff import config
from latentdiff.config import UserError


@dataclass(frozen=True)
class Round:
    radius: float = 1.0  # in pixels


@dataclass(frozen=True)
class Square:
    side: int = 2  # in pixels
    names: tuple[str, ...] = ("a",)  # what it is called


@dataclass(frozen=True)
class Store:
    path: str = ""  # of a file
    size: int = 0  # how large


@dataclass(frozen=True)
class Root:
    name: str = ""  # of the run
    rate: float = 1e-4  # how fast
    steps: int = 10  # how long
    on: bool = True  # whether at all
    limit: int | None = None  # at most; none: no limit
    fraction: float | None = None  # of the whole
    shape: Round | Square = Round()  # of the outline
    maybe: Square | None = None  # another
    many: tuple[Round | Square, ...] = ()  # several
    widths: tuple[int, ...] = (1, 2)  # per level
    store: Store | str = field(default_factory=Store)  # where to


FULL = Root("x", 2.5, 7, False, 3, 0.5, Square(5, ("b", "c")), Square(), (Round(2.0), Square()), (4,), Store("p", 1))


# ---- command line -> tree


@pytest.mark.parametrize("assignment, name, value", [
    ("rate=5e-5", "rate", 5e-5), ("rate=1", "rate", 1.0), ("steps=20", "steps", 20), ("steps=1e6", "steps", 1_000_000),
    ("steps=-3", "steps", -3), ("on=false", "on", False), ("on=Yes", "on", True), ("name=7", "name", "7"),
    ("name=a=b", "name", "a=b"), ("name=", "name", ""), ("limit=none", "limit", None), ("limit=4", "limit", 4),
    ("fraction=0.5", "fraction", 0.5), ("widths=1,2,4", "widths", (1, 2, 4)), ("widths=(3,)", "widths", (3,)),
    ("widths=[1, 2]", "widths", (1, 2)), ("widths=", "widths", ()), ("shape=Square", "shape", Square()),
    ("shape=Round", "shape", Round()), ("maybe=Square", "maybe", Square()), ("maybe=none", "maybe", None),
    ("many=Round,Square", "many", (Round(), Square())), ("shape.radius=3", "shape", Round(3.0)),
    ("store=some/where", "store", Store("some/where")), ("store.size=4", "store", Store("", 4)),
])  # fmt: skip
def test_an_assignment_sets_a_field(assignment, name, value):
    tree = config.override(Root(), [assignment])
    assert getattr(tree, name) == value and type(getattr(tree, name)) is type(value)
    assert tree == replace(Root(), **{name: value})


def test_items_of_a_list_are_reached_by_number():
    tree = config.override(FULL, ["many.0.radius=9", "many.1.names=x,y", "widths.0=8", "maybe.side=1"])
    assert tree.many == (Round(9.0), Square(2, ("x", "y"))) and tree.widths == (8,) and tree.maybe.side == 1


def test_a_choice_that_is_named_again_keeps_what_was_set():
    assert config.override(FULL, ["shape=Square"]).shape == Square(5, ("b", "c"))
    assert config.override(FULL, ["shape=Round"]).shape == Round()


@pytest.mark.parametrize("assignment, fragments", [
    ("ratte=1", ["the recipe has no field 'ratte'", "did you mean 'rate'?", "steps"]),
    ("shape.radios=1", ["shape has no field 'radios'", "did you mean 'radius'?"]),
    ("zzz=1", ["no field 'zzz'; It has name, rate"]),
    ("rate.x=1", ["rate is 0.0001", "no field 'x'"]),
    ("many.0.radius=1", ["many has no item '0'", "it has 0"]),
    ("steps=many", ["steps=many", "a whole number"]),
    ("steps=1.5", ["steps=1.5", "a whole number"]),
    ("steps=inf", ["a whole number"]),
    ("rate=fast", ["rate=fast", "a number"]),
    ("on=2", ["on=2", "true or false"]),
    ("shape=Triangle", ["shape=Triangle", "Round or Square"]),
    ("widths=1,b", ["widths", "whole number"]),
    ("widths=[1, \"b\"]", ["widths", "whole number"]),
    ("steps", ["'steps'", "train.lr=5e-5"]),
])  # fmt: skip
def test_a_wrong_assignment_is_refused_with_what_would_be_right(assignment, fragments):
    with pytest.raises(UserError) as caught:
        config.override(Root(), [assignment])
    assert all(fragment in str(caught.value) for fragment in fragments)


# ---- types


def test_numbers_and_lists_take_the_type_of_their_field():
    tree = config.checked(Root(rate=1, fraction=1, widths=[3, 4], many=[Round(2)]), Root, "")
    assert (tree.rate, tree.fraction, tree.widths, tree.many) == (1.0, 1.0, (3, 4), (Round(2.0),))
    assert type(tree.rate) is type(tree.fraction) is type(tree.many[0].radius) is float


@pytest.mark.parametrize("tree, fragments", [
    (Root(rate="1"), ["rate is '1'", "a number"]),
    (Root(steps=1.0), ["steps is 1.0", "a whole number"]),
    (Root(steps=True), ["steps is True"]),
    (Root(on=1), ["on is 1", "true or false"]),
    (Root(limit="x"), ["limit is 'x'"]),
    (Root(shape=Store()), ["shape is", "Round or Square"]),
    (Root(shape=Square(names="abc")), ["shape.names is 'abc'", "a list, each item text"]),
    (Root(many=(Round(), Square(side=2.5))), ["many.1.side is 2.5"]),
    (Root(widths=(1, None)), ["widths.1 is None"]),
])  # fmt: skip
def test_a_wrong_type_is_refused_by_its_path(tree, fragments):
    with pytest.raises(UserError) as caught:
        config.checked(tree, Root, "")
    assert all(fragment in str(caught.value) for fragment in fragments)


# ---- tree <-> JSON


@pytest.mark.parametrize("tree", [Root(), FULL])
def test_a_tree_survives_json(tree):
    text = json.dumps(config.to_dict(tree))
    back = config.checked(config.from_dict(json.loads(text), Root), Root, "")
    assert back == tree
    assert config.hash_of(back) == config.hash_of(tree) != config.hash_of(replace(tree, steps=11))


@pytest.mark.parametrize("change, fragments", [
    ({"type": "Path"}, ["'Path'", "Root"]),
    ({"colour": 1}, ["unknown fields colour"]),
    ({"shape": {"type": "Root"}}, ["recipe.shape is of type 'Root'", "Round, Square"]),
    ({"shape": {"type": "os.system"}}, ["recipe.shape", "Round, Square"]),
    ({"many": [{"type": "Round"}, {"type": "Store"}]}, ["recipe.many.1", "Store"]),
])  # fmt: skip
def test_a_saved_tree_names_only_classes_of_its_fields(change, fragments):
    with pytest.raises(UserError) as caught:
        config.from_dict(config.to_dict(FULL) | change, Root)
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_fields_that_an_older_version_did_not_know_take_their_default():
    saved = config.to_dict(FULL)
    del saved["rate"]
    assert config.from_dict(saved, Root) == replace(FULL, rate=1e-4)


def test_differences_are_named_by_field():
    other = replace(FULL, rate=1.0, shape=Square(6, ("b", "c")), many=(Round(3.0), Square()), maybe=None)
    assert config.differences(FULL, FULL) == []
    assert config.differences(FULL, other) == [
        ("rate", 2.5, 1.0), ("shape.side", 5, 6), ("maybe", Square(), None), ("many.0.radius", 2.0, 3.0),
    ]  # fmt: skip
    assert config.differences(FULL, replace(FULL, shape=Round()))[0][0] == "shape"
    assert config.differences(FULL, replace(FULL, many=()))[0][0] == "many"


# ---- recipe files


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


IMPORTS = "from latentdiff.config import load\nfrom latentdiff.training.settings import TrainConfig\n"


def test_a_recipe_may_build_on_another_that_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    write(tmp_path, "base.py", IMPORTS + "recipe = TrainConfig(steps=5, lr=1)")
    path = write(tmp_path / "deep", "mine.py", IMPORTS + "from dataclasses import replace\n"
                 "recipe = replace(load('../base.py'), steps=6)")  # fmt: skip
    monkeypatch.chdir("/")
    tree = config.read_recipe(path)
    assert (tree.steps, tree.lr) == (6, 1.0)


@pytest.mark.parametrize("text, fragments", [
    ("recipe = TrainConfig(step=3)", ["TrainConfig has no field 'step'", "did you mean 'steps'?"]),
    ("recipe = TrainConfig(steps='x')", ["train.steps is 'x'", "a whole number"]),
    ("recipe = TrainConfig(betas=(0.9, '0.99'))", ["train.betas.1"]),
    ("recipe = load('nowhere.py')", ["no recipe at", "nowhere.py"]),
    ("recipe = 1 / 0", ["ZeroDivisionError"]),
    ("recipe = TrainConfig", ["must set `recipe`"]),
    ("recip = TrainConfig()", ["must set `recipe`"]),
    ("recipe = \n", ["SyntaxError"]),
])  # fmt: skip
def test_a_wrong_recipe_file_is_refused_and_named(text, fragments, tmp_path):
    path = write(tmp_path, "mine.py", IMPORTS + text)
    with pytest.raises(UserError) as caught:
        config.read_recipe(path)
    assert all(fragment in str(caught.value) for fragment in [*fragments, str(path)])


# ---- help


def test_every_field_is_described_with_value_and_meaning():
    lines = config.describe(FULL)
    assert any(line.startswith("rate = 2.5") and line.endswith("how fast") for line in lines)
    assert any(line.startswith("shape.side = 5") and line.endswith("in pixels") for line in lines)
    assert any(line.startswith("many.1.names = ") and line.endswith("what it is called") for line in lines)
    assert any(line.startswith("limit = 3") and line.endswith("at most; none: no limit") for line in lines)


@dataclass(frozen=True)
class Gap:
    commented: int = 1  # a meaning
    uncommented: int = 2
    split: tuple[int, ...] = (
        1,
        2,
    )  # over lines


def test_a_field_without_a_comment_has_no_meaning():
    """The negative control of the test that every field of every recipe has one."""
    assert config.meanings(Gap) == {"commented": "a meaning", "split": "over lines"}
