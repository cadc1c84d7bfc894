"""The shapes dataset: scenes, captions, the reader that recovers scenes from images, and prompt accuracy."""

import itertools
import random

import numpy as np
import pytest
import torch

from latentdiff.config import UserError
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.captions import caption, parse
from latentdiff.data.shapes.dataset import HELD_OUT_PAIRS, ShapesConfig, ShapesDataset, prompts
from latentdiff.data.shapes.reader import prompt_accuracy, read_scene, wilson
from latentdiff.data.shapes.scene import BACKGROUNDS, CLASS_INDEX, COLOURS, KINDS, Scene, ShapeObject, draw, relation

DATA = ShapesDataset(ShapesConfig(seed=99, val_count=1000), "val")


def attributes(scene: Scene) -> tuple:
    return scene.background, sorted((o.kind, o.colour, o.size) for o in scene.objects)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    kernel = np.exp(-(np.arange(-8, 9) ** 2) / (2 * sigma**2))
    x = np.pad(image.astype(float), ((8, 8), (8, 8), (0, 0)), mode="edge")
    for axis in (0, 1):
        x = np.apply_along_axis(lambda line: np.convolve(line, kernel / kernel.sum(), "valid"), axis, x)
    return x


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def images_of(count: int) -> list[np.ndarray]:
    return [DATA.item(i, 0)["image"] for i in range(count)]


# ---- scenes


def test_a_scene_depends_on_seed_split_and_index_and_the_key_changes_only_the_caption():
    data, copy = ShapesDataset(ShapesConfig(seed=3)), ShapesDataset(ShapesConfig(seed=3))
    copy.item(7, 0)
    for i in (5, 4):
        a, b = data.item(i, 1), copy.item(i, 12345)
        assert a["image"].tobytes() == b["image"].tobytes() and (a["segmentation"] == b["segmentation"]).all()
        assert (a["boxes"] == b["boxes"]).all() and (a["label"], a["id"]) == (b["label"], b["id"])
        assert data.item(i, 1)["caption"] == a["caption"] == data.record(i, 1)["caption"]
    assert len({data.record(4, key)["caption"] for key in range(50)}) > 3
    other_datasets = [
        ShapesDataset(ShapesConfig(seed=4)),
        ShapesDataset(ShapesConfig(seed=3), "val"),
        ShapesDataset(ShapesConfig(seed=3), "test"),
    ]
    assert all(data.scene(4) != other.scene(4) for other in other_datasets)


def test_scenes_are_the_same_in_every_version():
    item = ShapesDataset(ShapesConfig()).item(11, 0)
    assert item["caption"] == "a large blue circle above a small blue ring on a black background"
    assert item["boxes"][0] == pytest.approx([0.3907, 0.0558, 0.7735, 0.4385, CLASS_INDEX["circle"]], abs=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (90, 33)])
def test_objects_are_inside_the_image_with_a_gap_and_a_clear_relation(size):
    data, side = ShapesDataset(ShapesConfig(height=size[0], width=size[1])), min(size)
    for i in range(300):
        objects = data.scene(i).objects
        boxes = [shape.box() for shape in objects]
        for x0, y0, x1, y1 in boxes:
            assert x0 >= side / 32 - 1e-9 and y0 >= side / 32 - 1e-9
            assert x1 <= size[1] - side / 32 + 1e-9 and y1 <= size[0] - side / 32 + 1e-9
        for a, b in itertools.combinations(boxes, 2):
            assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= 2 * side / 32 - 1e-9
        if len(objects) == 2:
            dx, dy = abs(objects[0].x - objects[1].x), abs(objects[0].y - objects[1].y)
            assert min(dx, dy) <= max(dx, dy) / 2


def test_all_attributes_occur_about_equally_often():
    scenes = [ShapesDataset(ShapesConfig()).scene(i) for i in range(2000)]
    objects = [shape for scene in scenes for shape in scene.objects]
    assert {(shape.colour, shape.kind) for shape in objects} == set(itertools.product(COLOURS, KINDS)) - HELD_OUT_PAIRS
    for values, n in (
        ([len(scene.objects) for scene in scenes], 3),
        ([scene.background for scene in scenes], 3),
        ([shape.kind for shape in objects], 6),
        ([shape.colour for shape in objects], 8),
        ([shape.size for scene in scenes if len(scene.objects) < 3 for shape in scene.objects], 2),
        ([relation(*scene.objects) for scene in scenes if len(scene.objects) == 2], 4),
    ):
        frequencies = [values.count(value) / len(values) * n for value in set(values)]
        assert len(frequencies) == n and min(frequencies) > 0.8 and max(frequencies) < 1.25


def test_an_eighth_of_the_pairs_is_held_out_but_none_of_the_documented_example():
    assert len(HELD_OUT_PAIRS) / (len(COLOURS) * len(KINDS)) == 1 / 8
    assert not HELD_OUT_PAIRS & {("red", "star"), ("blue", "circle")}


def test_boxes_label_and_segmentation_match_the_image():
    for i in range(50):
        item = DATA.item(i, 0)
        for x0, y0, x1, y1, kind in item["boxes"] * [32, 32, 32, 32, 1]:
            y, x = np.nonzero(item["segmentation"][int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] == 1 + kind)
            assert abs(len(set(x)) - (x1 - x0)) < 2.5 and abs(len(set(y)) - (y1 - y0)) < 2.5
        largest = max(item["boxes"], key=lambda box: box[2] - box[0])
        assert item["label"] == largest[4] or len(item["boxes"]) > 1
        assert set(np.unique(item["segmentation"])) == {0, *(1 + int(box[4]) for box in item["boxes"])}
    scene = Scene(
        "white", (ShapeObject("star", "red", "small", 8, 8, 4.4), ShapeObject("ring", "blue", "large", 20, 20, 6.3))
    )
    assert DATA._record(scene, 0, 0)["label"] == CLASS_INDEX["ring"]


def test_labels_do_not_depend_on_the_kinds_of_the_configuration():
    data = ShapesDataset(ShapesConfig(kinds=("ring",)))
    assert {data.record(i, 0)["label"] for i in range(20)} == {CLASS_INDEX["ring"]}


def test_the_fingerprint_depends_only_on_the_pixels():
    fingerprints = [
        ShapesDataset(config, split).fingerprint()
        for config, split in (
            (ShapesConfig(), "train"), (ShapesConfig(), "val"), (ShapesConfig(seed=1), "train"),
            (ShapesConfig(width=40), "train"), (ShapesConfig(max_objects=2), "train"), (ShapesConfig(count=9), "train"),
        )
    ]  # fmt: skip
    assert len(set(fingerprints)) == len(fingerprints)
    assert ShapesDataset(ShapesConfig(val_count=9)).fingerprint() == fingerprints[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ShapesConfig(height=31), "data.height is 31"),
        (ShapesConfig(count=0), "data.count is 0"),
        (ShapesConfig(max_objects=4), "data.max_objects is 4"),
        (ShapesConfig(kinds=("hexagon",)), "circle, square"),
        (ShapesConfig(kinds=()), "data.kinds"),
    ],
)
def test_invalid_settings_are_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        ShapesDataset(config)


# ---- captions


def test_canonical_captions_name_every_attribute():
    star, circle = ShapeObject("star", "red", "large", 16, 8, 6.2), ShapeObject("circle", "blue", "small", 15, 25, 4.5)
    ring, square = ShapeObject("ring", "green", "small", 5, 5, 4.5), ShapeObject("square", "green", "small", 5, 5, 4.5)
    assert caption(Scene("gray", (star, circle))) == "a large red star above a small blue circle on a gray background"
    assert caption(Scene("white", (square,))) == "a small green square on a white background"
    three = "a large red star, a small blue circle and a small green ring on a black background"
    assert caption(Scene("black", (star, circle, ring))) == three


def test_every_wording_of_a_caption_parses_to_its_scene():
    wordings = set()
    for i in range(150):
        scene = DATA.scene(i)
        for key in (None, *range(12)):
            text = caption(scene, key)
            parsed = parse(text)
            wordings.add((len(parsed.objects), parsed.relation is None, parsed.background is None, text[:2]))
            assert parsed.background in (None, scene.background)
            orders = itertools.permutations(scene.objects)
            assert any(
                all(w in ((t.size, t.colour, t.kind), (None, t.colour, t.kind)) for w, t in zip(parsed.objects, order))
                and (not parsed.relation or relation(*order) == parsed.relation)
                for order in orders
            )
            assert len(parsed.objects) == len(scene.objects)
        full = parse(caption(scene))
        assert full.background and all(size for size, _, _ in full.objects)
        assert bool(full.relation) == (len(scene.objects) == 2)
    assert len(wordings) > 12


@pytest.mark.parametrize("text", ["", "a cat", "a large red star above", "a red star above a red star and a red star"])
def test_text_that_is_not_a_caption_is_refused(text):
    with pytest.raises(UserError, match="cannot be parsed"):
        parse(text)


def test_prompts_name_every_attribute_of_one_or_two_objects_without_held_out_pairs():
    parsed = [parse(text) for text in prompts(ShapesConfig(), 500, 20_000_000)]
    assert [len(p.objects) for p in parsed].count(1) == 250 and [len(p.objects) for p in parsed].count(2) == 250
    assert all(p.background and all(t[0] for t in p.objects) for p in parsed)
    assert all(p.relation for p in parsed if len(p.objects) == 2)
    objects = [t for p in parsed for t in p.objects]
    assert not HELD_OUT_PAIRS & {t[1:] for t in objects}
    assert [len({t[j] for t in objects}) for j in range(3)] == [2, 8, 6] and len({p.background for p in parsed}) == 3
    assert prompts(ShapesConfig(), 20, 1) == prompts(ShapesConfig(), 20, 1) != prompts(ShapesConfig(), 20, 2)


def test_every_held_out_prompt_contains_a_held_out_pair():
    parsed = [parse(text) for text in prompts(ShapesConfig(kinds=("star", "ring")), 60, 1, held_out=True)]
    assert all(HELD_OUT_PAIRS & {t[1:] for t in p.objects} for p in parsed)
    assert {t[2] for p in parsed for t in p.objects} == {"star", "ring"}


# ---- reader


def test_the_reader_recovers_the_scene_of_an_image():
    for i in range(200):
        scene, detected = DATA.scene(i), read_scene(DATA.item(i, 0)["image"])
        assert detected is not None and attributes(detected) == attributes(scene)
        for shape in scene.objects:
            nearest = min(detected.objects, key=lambda t: abs(t.x - shape.x) + abs(t.y - shape.y))
            assert np.abs(np.subtract(nearest[3:], shape[3:])).max() < 0.1  # pixels


@pytest.mark.parametrize("size", [(48, 80), (128, 128)])
def test_the_reader_supports_other_image_sizes(size):
    data = ShapesDataset(ShapesConfig(height=size[0], width=size[1]))
    for i in range(25):
        assert attributes(read_scene(data.item(i, 0)["image"])) == attributes(data.scene(i))


def test_the_reader_gives_the_same_scene_for_tensors_and_uint8_arrays():
    image = DATA.item(0, 0)["image"]
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    assert attributes(read_scene(tensor)) == attributes(read_scene(image)) and read_scene(tensor.bfloat16()) is not None


def test_the_reader_tolerates_small_reconstruction_errors():
    rng, correct = np.random.default_rng(0), 0
    for i in range(200):
        image = blurred(DATA.item(i, 0)["image"], 0.4) + rng.normal(size=(32, 32, 3)) * 6 + rng.normal(size=3) * 4
        detected = read_scene(to_uint8(image))
        correct += detected is not None and attributes(detected) == attributes(DATA.scene(i))
    assert correct >= 194


def test_the_reader_refuses_noise():
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert read_scene(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) is None
        assert read_scene(to_uint8(rng.normal(128, 40, (32, 32, 3)))) is None
    assert not any(read_scene(to_uint8(image + rng.normal(size=image.shape) * 50)) for image in images_of(30))


def test_the_reader_refuses_blends_of_two_scenes():
    images = images_of(200)
    assert not any(read_scene(to_uint8(a * 0.5 + b * 0.5)) for a, b in itertools.pairwise(images))
    single = [image for i, image in enumerate(images) if len(DATA.scene(i).objects) == 1]
    assert not any(read_scene(to_uint8(a * 0.5 + b * 0.5)) for a, b in itertools.combinations(single[:25], 2))


def test_the_reader_refuses_blurred_shapes():
    assert not any(read_scene(to_uint8(blurred(image, sigma))) for image in images_of(60) for sigma in (1.5, 2, 3))


def test_the_reader_refuses_empty_images():
    assert read_scene(np.zeros((32, 32, 3), np.uint8)) is None and read_scene(torch.zeros(3, 32, 32)) is None
    assert all(read_scene(np.full((32, 32, 3), colour, np.uint8)) is None for colour in BACKGROUNDS.values())


def test_the_reader_refuses_images_unlike_the_dataset():
    valid = Scene(
        "white", (ShapeObject("star", "red", "large", 9, 9, 6.3), ShapeObject("circle", "blue", "small", 24, 24, 4.4))
    )
    image = draw(valid, 32, 32)[0]
    assert read_scene(image) is not None
    speck, half, brown = image.copy(), image.copy(), image.copy()
    speck[22:25, 5:8] = 0
    half[20:, :] = draw(valid._replace(background="gray"), 32, 32)[0][20:, :]
    brown[np.all(image == COLOURS["red"], axis=2)] = (120, 70, 30)
    merged = valid._replace(objects=(valid.objects[0], valid.objects[1]._replace(x=13.0, y=13.0)))
    crosses = tuple(ShapeObject("cross", "red", "small", x, y, 4.4) for x in (7, 24) for y in (7, 24))
    four = valid._replace(objects=crosses)
    diamond = np.full((32, 32, 3), 248, np.uint8)
    diamond[np.abs(np.arange(32) - 15.5) + np.abs(np.arange(32) - 15.5)[:, None] < 8] = COLOURS["green"]
    invalid = {"speck": speck, "half": half, "brown": brown, "diamond": diamond} | {
        "merged": draw(merged, 32, 32)[0], "four": draw(four, 32, 32)[0],
    }  # fmt: skip
    assert [name for name, image in invalid.items() if read_scene(image) is not None] == []


# ---- prompt accuracy


def test_images_match_their_own_captions_in_any_wording_but_not_other_captions():
    records = [DATA.item(i, i) for i in range(60)]
    images, captions = [r["image"] for r in records], [r["caption"] for r in records]
    result = prompt_accuracy(images, captions)
    assert all(result.correct) and set(result.by_attribute.values()) == {1.0}
    shifted = prompt_accuracy(images[1:] + images[:1], captions)
    assert sum(shifted.correct) <= 2 and shifted.by_attribute["clean"] == 1 and shifted.by_attribute["all"] < 0.05


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("count", "a large red star on a gray background"),
        ("colour", "a large red star above a small green circle on a gray background"),
        ("kind", "a large red star above a small blue ring on a gray background"),
        ("size", "a large red star above a large blue circle on a gray background"),
        ("relation", "a large red star below a small blue circle on a gray background"),
        ("background", "a large red star above a small blue circle on a white background"),
    ],
)
def test_each_attribute_of_a_caption_is_compared_with_the_image(attribute, text):
    star, circle = ShapeObject("star", "red", "large", 16, 8, 6.3), ShapeObject("circle", "blue", "small", 15, 25, 4.4)
    image, _ = draw(Scene("gray", (circle, star)), 32, 32)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1  # [1, 3, 32, 32]
    correct = prompt_accuracy(x, ["a large red star above a small blue circle on a gray background"])
    assert correct.correct == [True] and set(correct.by_attribute) == set(reader.ATTRIBUTES)
    wrong = prompt_accuracy(x, [text])
    assert wrong.correct == [False] and wrong.by_attribute[attribute] == 0 and wrong.by_attribute["clean"] == 1
    if attribute != "count":
        assert sum(fraction == 0 for fraction in wrong.by_attribute.values()) == 2  # the attribute and "all"


def test_swapped_colours_do_not_match_the_caption():
    objects = (ShapeObject("star", "blue", "large", 16, 8, 6.3), ShapeObject("circle", "red", "small", 15, 25, 4.4))
    image, _ = draw(Scene("gray", objects), 32, 32)
    assert prompt_accuracy([image], ["a large red star above a small blue circle"]).correct == [False]


def test_an_image_that_the_reader_refuses_is_never_correct():
    image = to_uint8(blurred(DATA.item(0, 0)["image"], 1.5))
    assert prompt_accuracy([image], [caption(DATA.scene(0))]).by_attribute["all"] == 0


def test_the_confidence_interval_is_that_of_wilson():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4) and wilson(20, 20)[1] == pytest.approx(1)


def test_the_global_random_state_is_not_changed():
    random.seed(0)
    before = random.getstate()
    DATA.item(0, 0)
    assert random.getstate() == before
