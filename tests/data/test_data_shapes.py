import itertools
import random

import numpy as np
import pytest
import torch

from latentdiff.config import UserError
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.captions import caption, parse
from latentdiff.data.shapes.dataset import LEFT_OUT, ShapesConfig, ShapesDataset, prompts
from latentdiff.data.shapes.reader import prompt_accuracy, read, wilson
from latentdiff.data.shapes.scene import BACKGROUNDS, COLOURS, KINDS, NUMBER, Scene, Thing, draw, relation

FRESH = ShapesDataset(ShapesConfig(seed=99, val_count=1000), "val")


def looks(scene: Scene) -> tuple:
    return scene.background, sorted((t.kind, t.colour, t.size) for t in scene.things)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    kernel = np.exp(-(np.arange(-8, 9) ** 2) / (2 * sigma**2))
    x = np.pad(image.astype(float), ((8, 8), (8, 8), (0, 0)), mode="edge")
    for axis in (0, 1):
        x = np.apply_along_axis(lambda line: np.convolve(line, kernel / kernel.sum(), "valid"), axis, x)
    return x


def to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def pictures(count: int) -> list[np.ndarray]:
    return [FRESH.item(i, 0)["image"] for i in range(count)]


# ---- scenes


def test_a_scene_is_a_function_of_seed_split_and_index_and_the_key_words_only_the_caption():
    data, again = ShapesDataset(ShapesConfig(seed=3)), ShapesDataset(ShapesConfig(seed=3))
    again.item(7, 0)
    for i in (5, 4):
        a, b = data.item(i, 1), again.item(i, 12345)
        assert a["image"].tobytes() == b["image"].tobytes() and (a["segmentation"] == b["segmentation"]).all()
        assert (a["boxes"] == b["boxes"]).all() and (a["label"], a["id"]) == (b["label"], b["id"])
        assert data.item(i, 1)["caption"] == a["caption"] == data.record(i, 1)["caption"]
    assert len({data.record(4, key)["caption"] for key in range(50)}) > 3
    others = [
        ShapesDataset(ShapesConfig(seed=4)),
        ShapesDataset(ShapesConfig(seed=3), "val"),
        ShapesDataset(ShapesConfig(seed=3), "test"),
    ]
    assert all(data.scene(4) != other.scene(4) for other in others)


def test_scenes_do_not_change_with_versions():
    item = ShapesDataset(ShapesConfig()).item(11, 0)
    assert item["caption"] == "a large blue circle above a small blue ring on a black background"
    assert item["boxes"][0] == pytest.approx([0.3907, 0.0558, 0.7735, 0.4385, NUMBER["circle"]], abs=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (90, 33)])
def test_objects_lie_inside_with_a_gap_and_a_clear_relation(size):
    data, side = ShapesDataset(ShapesConfig(height=size[0], width=size[1])), min(size)
    for i in range(300):
        things = data.scene(i).things
        boxes = [t.box() for t in things]
        for x0, y0, x1, y1 in boxes:
            assert x0 >= side / 32 - 1e-9 and y0 >= side / 32 - 1e-9
            assert x1 <= size[1] - side / 32 + 1e-9 and y1 <= size[0] - side / 32 + 1e-9
        for a, b in itertools.combinations(boxes, 2):
            assert max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3]) >= 2 * side / 32 - 1e-9
        if len(things) == 2:
            dx, dy = abs(things[0].x - things[1].x), abs(things[0].y - things[1].y)
            assert min(dx, dy) <= max(dx, dy) / 2


def test_everything_occurs_and_about_equally_often():
    scenes = [ShapesDataset(ShapesConfig()).scene(i) for i in range(2000)]
    things = [t for s in scenes for t in s.things]
    assert {(t.colour, t.kind) for t in things} == set(itertools.product(COLOURS, KINDS)) - LEFT_OUT
    for found, n in (
        ([len(s.things) for s in scenes], 3),
        ([s.background for s in scenes], 3),
        ([t.kind for t in things], 6),
        ([t.colour for t in things], 8),
        ([t.size for s in scenes if len(s.things) < 3 for t in s.things], 2),
        ([relation(*s.things) for s in scenes if len(s.things) == 2], 4),
    ):
        shares = [found.count(value) / len(found) * n for value in set(found)]
        assert len(shares) == n and min(shares) > 0.8 and max(shares) < 1.25


def test_left_out_pairs_are_an_eighth_and_spare_the_example():
    assert len(LEFT_OUT) / (len(COLOURS) * len(KINDS)) == 1 / 8
    assert not LEFT_OUT & {("red", "star"), ("blue", "circle")}


def test_boxes_label_and_segmentation_say_what_the_picture_shows():
    for i in range(50):
        item = FRESH.item(i, 0)
        for x0, y0, x1, y1, kind in item["boxes"] * [32, 32, 32, 32, 1]:
            rows, columns = np.nonzero(item["segmentation"][int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] == 1 + kind)
            assert abs(len(set(columns)) - (x1 - x0)) < 2.5 and abs(len(set(rows)) - (y1 - y0)) < 2.5
        largest = max(item["boxes"], key=lambda box: box[2] - box[0])
        alone = len(item["boxes"]) == 1
        assert item["label"] == largest[4] or not alone
        assert set(np.unique(item["segmentation"])) == {0, *(1 + int(box[4]) for box in item["boxes"])}
    scene = Scene("white", (Thing("star", "red", "small", 8, 8, 4.4), Thing("ring", "blue", "large", 20, 20, 6.3)))
    assert FRESH._record(scene, 0, 0)["label"] == NUMBER["ring"]


def test_labels_do_not_depend_on_the_kinds_of_the_configuration():
    data = ShapesDataset(ShapesConfig(kinds=("ring",)))
    assert {data.record(i, 0)["label"] for i in range(20)} == {NUMBER["ring"]}


def test_the_fingerprint_follows_the_pixels_only():
    prints = [
        ShapesDataset(config, split).fingerprint()
        for config, split in (
            (ShapesConfig(), "train"), (ShapesConfig(), "val"), (ShapesConfig(seed=1), "train"), (ShapesConfig(width=40), "train"),
            (ShapesConfig(max_objects=2), "train"), (ShapesConfig(count=9), "train"),
        )
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert ShapesDataset(ShapesConfig(val_count=9)).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ShapesConfig(height=31), "data.height is 31"),
        (ShapesConfig(count=0), "data.count is 0"),
        (ShapesConfig(max_objects=4), "data.max_objects is 4"),
        (ShapesConfig(kinds=("hexagon",)), "circle, square"),
        (ShapesConfig(kinds=()), "data.kinds"),
    ],
)
def test_impossible_settings_are_refused_by_name(config, words):
    with pytest.raises(UserError, match=words):
        ShapesDataset(config)


# ---- captions


def test_the_canonical_captions_read_as_promised():
    star, circle = Thing("star", "red", "large", 16, 8, 6.2), Thing("circle", "blue", "small", 15, 25, 4.5)
    ring, square = Thing("ring", "green", "small", 5, 5, 4.5), Thing("square", "green", "small", 5, 5, 4.5)
    assert caption(Scene("gray", (star, circle))) == "a large red star above a small blue circle on a gray background"
    assert caption(Scene("white", (square,))) == "a small green square on a white background"
    three = "a large red star, a small blue circle and a small green ring on a black background"
    assert caption(Scene("black", (star, circle, ring))) == three


def test_every_wording_parses_back_to_its_scene():
    wordings = set()
    for i in range(150):
        scene = FRESH.scene(i)
        for key in (None, *range(12)):
            text = caption(scene, key)
            wanted = parse(text)
            wordings.add((len(wanted.things), wanted.relation is None, wanted.background is None, text[:2]))
            assert wanted.background in (None, scene.background)
            orders = itertools.permutations(scene.things)
            assert any(
                all(w in ((t.size, t.colour, t.kind), (None, t.colour, t.kind)) for w, t in zip(wanted.things, order))
                and (not wanted.relation or relation(*order) == wanted.relation)
                for order in orders
            )
            assert len(wanted.things) == len(scene.things)
        full = parse(caption(scene))
        assert full.background and all(size for size, _, _ in full.things)
        assert bool(full.relation) == (len(scene.things) == 2)
    assert len(wordings) > 12


@pytest.mark.parametrize("text", ["", "a cat", "a large red star above", "a red star above a red star and a red star"])
def test_other_captions_are_refused(text):
    with pytest.raises(UserError, match="cannot be read"):
        parse(text)


def test_prompts_keep_their_rules():
    wanted = [parse(text) for text in prompts(ShapesConfig(), 500, 20_000_000)]
    assert [len(w.things) for w in wanted].count(1) == 250 and [len(w.things) for w in wanted].count(2) == 250
    assert all(w.background and all(t[0] for t in w.things) for w in wanted)
    assert all(w.relation for w in wanted if len(w.things) == 2)
    things = [t for w in wanted for t in w.things]
    assert not LEFT_OUT & {t[1:] for t in things}
    assert [len({t[j] for t in things}) for j in range(3)] == [2, 8, 6] and len({w.background for w in wanted}) == 3
    assert prompts(ShapesConfig(), 20, 1) == prompts(ShapesConfig(), 20, 1) != prompts(ShapesConfig(), 20, 2)


def test_prompts_of_left_out_pairs_each_hold_one():
    wanted = [parse(text) for text in prompts(ShapesConfig(kinds=("star", "ring")), 60, 1, left_out=True)]
    assert all(LEFT_OUT & {t[1:] for t in w.things} for w in wanted)
    assert {t[2] for w in wanted for t in w.things} == {"star", "ring"}


# ---- the reader


def test_the_reader_recovers_fresh_scenes():
    for i in range(200):
        scene, found = FRESH.scene(i), read(FRESH.item(i, 0)["image"])
        assert found is not None and looks(found) == looks(scene)
        for thing in scene.things:
            nearest = min(found.things, key=lambda t: abs(t.x - thing.x) + abs(t.y - thing.y))
            assert np.abs(np.subtract(nearest[3:], thing[3:])).max() < 0.1  # pixels


@pytest.mark.parametrize("size", [(48, 80), (128, 128)])
def test_the_reader_takes_other_sizes(size):
    data = ShapesDataset(ShapesConfig(height=size[0], width=size[1]))
    for i in range(25):
        assert looks(read(data.item(i, 0)["image"])) == looks(data.scene(i))


def test_the_reader_takes_tensors_and_bytes_alike():
    image = FRESH.item(0, 0)["image"]
    tensor = torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1
    assert looks(read(tensor)) == looks(read(image)) and read(tensor.bfloat16()) is not None


def test_the_reader_bears_what_a_good_autoencoder_does():
    rng, right = np.random.default_rng(0), 0
    for i in range(200):
        image = blurred(FRESH.item(i, 0)["image"], 0.4) + rng.normal(size=(32, 32, 3)) * 6 + rng.normal(size=3) * 4
        found = read(to_bytes(image))
        right += found is not None and looks(found) == looks(FRESH.scene(i))
    assert right >= 194


def test_noise_is_refused():
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert read(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) is None
        assert read(to_bytes(rng.normal(128, 40, (32, 32, 3)))) is None
    assert not any(read(to_bytes(image + rng.normal(size=image.shape) * 50)) for image in pictures(30))


def test_blends_of_two_scenes_are_refused():
    images = pictures(200)
    assert not any(read(to_bytes(a * 0.5 + b * 0.5)) for a, b in itertools.pairwise(images))
    single = [image for i, image in enumerate(images) if len(FRESH.scene(i).things) == 1]
    assert not any(read(to_bytes(a * 0.5 + b * 0.5)) for a, b in itertools.combinations(single[:25], 2))


def test_blurred_shapes_are_refused():
    assert not any(read(to_bytes(blurred(image, sigma))) for image in pictures(60) for sigma in (1.5, 2, 3))


def test_empty_pictures_are_refused():
    assert read(np.zeros((32, 32, 3), np.uint8)) is None and read(torch.zeros(3, 32, 32)) is None
    assert all(read(np.full((32, 32, 3), colour, np.uint8)) is None for colour in BACKGROUNDS.values())


def test_what_is_not_of_this_data_is_refused():
    ok = Scene("white", (Thing("star", "red", "large", 9, 9, 6.3), Thing("circle", "blue", "small", 24, 24, 4.4)))
    image = draw(ok, 32, 32)[0]
    assert read(image) is not None
    speck, half, brown = image.copy(), image.copy(), image.copy()
    speck[22:25, 5:8] = 0
    half[20:, :] = draw(ok._replace(background="gray"), 32, 32)[0][20:, :]
    brown[np.all(image == COLOURS["red"], axis=2)] = (120, 70, 30)
    merged = ok._replace(things=(ok.things[0], ok.things[1]._replace(x=13.0, y=13.0)))
    four = ok._replace(things=tuple(Thing("cross", "red", "small", x, y, 4.4) for x in (7, 24) for y in (7, 24)))
    diamond = np.full((32, 32, 3), 248, np.uint8)
    diamond[np.abs(np.arange(32) - 15.5) + np.abs(np.arange(32) - 15.5)[:, None] < 8] = COLOURS["green"]
    wrong = {"speck": speck, "half": half, "brown": brown, "diamond": diamond} | {
        "merged": draw(merged, 32, 32)[0], "four": draw(four, 32, 32)[0],
    }  # fmt: skip
    assert [name for name, picture in wrong.items() if read(picture) is not None] == []


# ---- prompt accuracy


def test_real_pictures_of_any_wording_are_right_and_a_neighbours_picture_is_not():
    records = [FRESH.item(i, i) for i in range(60)]
    images, captions = [r["image"] for r in records], [r["caption"] for r in records]
    result = prompt_accuracy(images, captions)
    assert all(result.correct) and set(result.rates.values()) == {1.0}
    shifted = prompt_accuracy(images[1:] + images[:1], captions)
    assert sum(shifted.correct) <= 2 and shifted.rates["clean"] == 1 and shifted.rates["all"] < 0.05


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
def test_each_attribute_that_the_caption_names_is_held_against_the_picture(attribute, text):
    star, circle = Thing("star", "red", "large", 16, 8, 6.3), Thing("circle", "blue", "small", 15, 25, 4.4)
    image, _ = draw(Scene("gray", (circle, star)), 32, 32)
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1  # [1, 3, 32, 32]
    good = prompt_accuracy(x, ["a large red star above a small blue circle on a gray background"])
    assert good.correct == [True] and set(good.rates) == set(reader.VERDICTS)
    bad = prompt_accuracy(x, [text])
    assert bad.correct == [False] and bad.rates[attribute] == 0 and bad.rates["clean"] == 1
    if attribute != "count":
        assert sum(rate == 0 for rate in bad.rates.values()) == 2  # the attribute and "all"


def test_a_swap_of_colours_is_a_wrong_picture():
    things = (Thing("star", "blue", "large", 16, 8, 6.3), Thing("circle", "red", "small", 15, 25, 4.4))
    image, _ = draw(Scene("gray", things), 32, 32)
    assert prompt_accuracy([image], ["a large red star above a small blue circle"]).correct == [False]


def test_a_picture_that_is_not_clean_is_never_right():
    image = to_bytes(blurred(FRESH.item(0, 0)["image"], 1.5))
    assert prompt_accuracy([image], [caption(FRESH.scene(0))]).rates["all"] == 0


def test_the_interval_is_wilsons():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4) and wilson(20, 20)[1] == pytest.approx(1)


def test_random_state_outside_is_left_alone():
    random.seed(0)
    before = random.getstate()
    FRESH.item(0, 0)
    assert random.getstate() == before
