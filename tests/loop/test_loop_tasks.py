"""Every small recipe takes two steps, draws from what it was trained on, and says in one line what is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import call, column, files_in, metrics_of
from PIL import Image

import latentdiff
from latentdiff import cli, recipe, rng
from latentdiff.autoencoder.autoencoder import Decoder, Encoder
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.recipe import DiffusionRecipe
from latentdiff.sampling import options as sample_options
from latentdiff.training.run_dir import read_recipe

TASKS = ("class", "layout", "semantic", "superres", "inpaint", "uncond", "text", "pixel", "distilled")
TWO = ("init=", "data.count=16", "data.val_count=4", "train.steps=2", "train.batch_size=4", "train.log_every=1",
       "train.val_every=2", "train.sample_every=2", "train.checkpoint_every=2", "sampling.steps=2",
       "unet.channels=16", "unet.channel_mult=1,2,2", "unet.norm_groups=8", "unet.head_channels=8")  # fmt: skip
SEEDS = ("--steps", 2, "--no-grid")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(task): a run of two steps. Read only."""
    root, made = tmp_path_factory.mktemp("tasks"), {}

    def trained(task, *argv):
        if (task, argv) not in made:
            own = () if task == "pixel" else ("autoencoder=recipes/autoencoder/tiny.py",)
            if task == "distilled":  # with its teacher comes the autoencoder
                own = (f"init={trained('text')}",)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LATENTDIFF_RUNS", str(root))
                call("train_diffusion", f"recipes/diffusion/{task}.py", *TWO, *own, *argv, f"name={task}{len(made)}")
            made[task, argv] = root / f"{task}{len(made)}"
        return made[task, argv]

    return trained


@pytest.fixture
def given(tmp_path):
    """given(task): the options of one input of that task, written as files."""
    scene = ShapesDataset(ShapesConfig(kinds=("circle", "star"), max_objects=2), "test").item(0, 0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:28] = 255
    boxes = scene["boxes"].astype(float)
    bbox = np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], axis=1)
    for name, pixels in {"image": scene["image"], "map": scene["segmentation"], "mask": mask,
                         "small": scene["image"][::4, ::4]}.items():  # fmt: skip
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    layout = {"objects": {"bbox": bbox.tolist(), "categories": ["circle" if k == 0 else "star" for k in boxes[:, 4]]}}
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    files = {"class": ("--class", "star"), "layout": ("--layout", tmp_path / "layout.json"), "uncond": (), "pixel": (),
             "semantic": ("--segmentation", tmp_path / "map.png"), "superres": ("--low-res", tmp_path / "small.png"),
             "inpaint": ("--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png"),
             **dict.fromkeys(("text", "distilled"), ("--prompt", "a red star"))}  # fmt: skip
    return files.__getitem__


def images(folder):
    return [np.asarray(Image.open(folder / name)) for name in files_in(folder) if name.endswith(".png")]


@pytest.mark.parametrize("task", TASKS)
def test_every_small_recipe_takes_two_steps_and_draws(task, trained, given, tmp_path):
    run = trained(task)
    assert len(column(run, "loss")) == 2 and len(column(run, "val_loss")) == 1
    assert np.isfinite(column(run, "loss")).all() and (run / "samples" / "00000002.png").exists()
    call("sample", "--run", run, "--output", tmp_path / "out", *SEEDS, "--seed", "0-1", *given(task))
    drawn = images(tmp_path / "out")
    assert [x.shape for x in drawn] == [(32, 32, 3)] * 2 and not np.array_equal(*drawn)


def test_the_help_of_a_run_says_what_it_draws_from(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sample.py", "--run", str(trained("semantic")), "--help"])
    with pytest.raises(SystemExit):
        cli.answer_help("usage", sample_options.describe_run)
    assert "--segmentation" in (said := capsys.readouterr().out) and "class numbers from 0 to 4" in said


def test_the_newest_run_that_takes_the_inputs_is_the_default(trained, given, runs, tmp_path):
    for task in ("inpaint", "uncond", "semantic"):  # uncond is newer than inpaint, which has learned to fill
        shutil.copytree(trained(task), runs / task)
    for task in ("semantic", "inpaint", "uncond"):
        call("sample", "--output", tmp_path / task, *SEEDS, *given(task))
        assert json.loads((tmp_path / task / "samples.jsonl").read_text())["run"] == task


@pytest.mark.parametrize("task, more", [("inpaint", ()), ("uncond", ()), ("text", ("--prompt", "a red star"))])
def test_known_pixels_stay_to_the_bit_and_the_others_depend_on_the_seed(task, more, trained, given, tmp_path):
    """Also in a run that has learned nothing of masks: known pixels are blended in while it draws."""
    drawn = sample_images(trained(task), tmp_path / "out", "--seed", "0-1", *given("inpaint"), *more)
    image, hole = known(tmp_path)
    assert len(drawn) == 2 and all(np.array_equal(x[~hole], image[~hole]) for x in drawn)
    assert not np.array_equal(drawn[0][hole], drawn[1][hole])


def known(folder):
    """The image and the hole, [H, W], of given("inpaint")."""
    return np.asarray(Image.open(folder / "image.png")), np.asarray(Image.open(folder / "mask.png")) > 0


def test_images_that_are_measured_and_looked_at_keep_their_known_pixels_too(trained, runs):
    run = Path(shutil.copytree(trained("inpaint"), runs / "run"))
    call("evaluate", run, "--count", 3, "--batch-size", 2, "--features", "autoencoder", "--no-report")
    r = read_recipe(run, DiffusionRecipe)
    data = recipe.with_fields(r, recipe.open_data(r, "val"))
    (drawn,) = (run / "evaluation").glob("samples-*/00000.png")
    for i, path in enumerate(sorted(drawn.parent.glob("*.png"))):
        asked = data.item(i, rng.key(0, "wanted", i))
        assert differing(np.asarray(Image.open(path)), asked) == {"hole"}
    sheet = np.asarray(Image.open(run / "samples" / "00000002.png"))
    for i, asked in enumerate(data.item(i, rng.key("in order", i)) for i in range(4)):
        left = 2 + 98 * i  # enlarged to 96 pixels
        assert differing(sheet[2:98:3, left : left + 96 : 3], asked) == {"hole"}


def differing(drawn, asked):
    """Where a image [H, W, 3] is not the one that was to be filled: "hole", "known" or both."""
    places = np.where(asked["mask"] > 0, "hole", "known")
    return set(places[(drawn != asked["image"]).any(-1)].tolist())


def test_blending_looks_at_the_known_pixels(trained, given, tmp_path):
    first = sample_images(trained("uncond"), tmp_path / "a", *given("inpaint"))[0]
    image, hole = known(tmp_path)
    Image.fromarray(255 - image).save(tmp_path / "image.png")
    other = sample_images(trained("uncond"), tmp_path / "b", *given("inpaint"))[0]
    assert not np.array_equal(first[hole], other[hole])


def sample_images(run, folder, *argv):
    call("sample", "--run", run, "--output", folder, *SEEDS, *argv)
    return images(folder)


def test_folders_of_inputs_are_drawn_one_by_one_at_their_own_sizes(trained, tmp_path):
    (tmp_path / "maps").mkdir()
    for name, size in (("a", (32, 32)), ("b", (64, 48)), ("c", (64, 48))):
        Image.new("L", size, 1).save(tmp_path / "maps" / f"{name}.png")
    drawn = sample_images(trained("semantic"), tmp_path / "out", "--segmentation", tmp_path / "maps", "--num-images", 2)
    assert [x.shape[:2] for x in drawn] == [(32, 32)] * 2 + [(48, 64)] * 4
    notes = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [note["segmentation"][-5:] for note in notes] == ["a.png"] * 2 + ["b.png"] * 2 + ["c.png"] * 2


def test_a_batch_of_inputs_draws_what_each_would_alone(trained, given, tmp_path):
    argv = ("--layout", given("layout")[1])
    (tmp_path / "none.json").write_text('{"objects": {"bbox": [], "categories": []}}')
    both = sample_images(trained("layout"), tmp_path / "a", *argv, "--layout", tmp_path / "none.json")
    alone = sample_images(trained("layout"), tmp_path / "b", "--layout", tmp_path / "none.json")
    assert np.abs(both[1].astype(int) - alone[0].astype(int)).max() <= 1


def test_a_image_is_drawn_over_as_far_as_strength_says(trained, given, tmp_path):
    given("inpaint")
    image = np.asarray(Image.open(tmp_path / "image.png")).astype(int)
    argv = ("--init-image", tmp_path / "image.png", "--steps", 10, "--strength")
    run = trained("pixel", "schedule.snr_shift=1")  # a shift of its own would be most of the noise at a tenth
    weak, strong = (sample_images(run, tmp_path / s, *argv, s)[0] for s in ("0.1", "1"))
    assert np.abs(weak - image).mean() < 0.5 * np.abs(strong - image).mean()


@pytest.mark.parametrize(("tiling", "largest"),
                         [("exact", {}), ("offloaded", {}), ("blended", {"Encoder": 32, "Decoder": 8})])  # fmt: skip
@pytest.mark.parametrize("argv", [("inpaint", "--image"), ("uncond", "--image"), ("uncond", "--init-image")])
def test_larger_images_are_encoded_and_decoded_in_parts(argv, tiling, largest, trained, tmp_path, monkeypatch):
    run, option = trained(argv[0]), argv[1]
    image = ShapesDataset(ShapesConfig(height=64, width=96), "test").item(0, 0)["image"]
    mask = np.zeros((64, 96), np.uint8)
    mask[20:50, 30:80] = 255
    for name, pixels in (("image", image), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    argv = (option, tmp_path / "image.png", "--tile-size", 32, "--tiling", tiling)
    argv += ("--mask", tmp_path / "mask.png") if option == "--image" else ("--height", 64, "--width", 96)
    seen = {}
    for network in (Encoder, Decoder):
        monkeypatch.setattr(network, "features", watched(network.features, seen))
    (drawn,) = sample_images(run, tmp_path / "out", *argv)
    assert seen == largest and drawn.shape == (64, 96, 3)  # strips go through the layers, never through a network
    assert option == "--init-image" or np.array_equal(drawn[mask == 0], image[mask == 0])


def watched(features, seen):
    """The longest side of what a network is given goes into seen, by its class."""

    def inside(self, x):
        name = type(self).__name__
        seen[name] = max(seen.get(name, 0), *x.shape[2:])
        return features(self, x)

    return inside


def test_a_row_shows_how_a_image_came_to_be(trained, tmp_path):
    call("sample", "--run", trained("uncond"), "--output", tmp_path, "--steps", 4, "--progressive")
    row = np.asarray(Image.open(tmp_path / "00000-s0-steps.png"))
    last = np.asarray(Image.open(tmp_path / "00000-s0.png"))
    assert row.shape == (36, 5 * 34 + 2, 3) and np.array_equal(row[2:34, -34:-2], last)


def test_python_draws_from_fields_as_the_script_does(trained, given, tmp_path):
    drawn = sample_images(trained("inpaint"), tmp_path / "out", *given("inpaint"), "--num-images", 2)
    model = latentdiff.load_run(trained("inpaint"))
    image = torch.from_numpy(np.asarray(Image.open(tmp_path / "image.png")).copy())
    mask = torch.from_numpy((np.asarray(Image.open(tmp_path / "mask.png")) > 0).astype(np.uint8))
    x = model.sample(fields={"image": torch.stack([image] * 2), "mask": torch.stack([mask] * 2)}, steps=2)
    want = np.stack(drawn).transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(x.numpy() - want).max() <= 1.01 / 127.5
    model = latentdiff.load_run(trained("layout"))
    assert model.sample(fields={"boxes": [np.ones((1, 5)), np.ones((2, 5))]}, steps=2).shape == (2, 3, 32, 32)
    assert model.sample(fields={"boxes": [np.ones((1, 5))]}, steps=2, height=40).shape == (1, 3, 40, 32)


def test_the_degradation_of_images_that_nobody_prepared_is_trained_on(trained, given, tmp_path):
    run = trained("superres", "derived_fields.0.kind=bsr")
    ours, plain = (column(r, "grad_norm") for r in (run, trained("superres")))
    assert len(ours) == 2 and np.isfinite(ours).all() and ours[0] != plain[0]  # the same images, made small otherwise
    assert sample_images(run, tmp_path / "out", *given("superres"))[0].shape == (32, 32, 3)


@pytest.mark.parametrize(
    "task, one, other",
    [("tiny", "--prompt=a red star", "--prompt=a blue circle"), ("class", "--class=star", "--class=circle")],
)
def test_a_caption_or_a_class_and_a_mask_can_be_joined(task, one, other, runs, given, tmp_path):
    recipe = tmp_path / "guided.py"
    recipe.write_text(
        '"""Filling as something says."""\nfrom dataclasses import replace\nfrom latentdiff.config import read_recipe\n'
        f'base, fill = (read_recipe(f"recipes/diffusion/{{name}}.py") for name in ("{task}", "inpaint"))\n'
        "recipe = replace(base, derived_fields=fill.derived_fields, conditions=(*base.conditions, *fill.conditions))\n"
    )
    hasty = (
        "train.warmup_steps=0",
        "train.lr=0.03",
        "train.ema_decay=0",
    )  # or two steps would teach nothing of what is said
    call("train_diffusion", recipe, *TWO, "autoencoder=recipes/autoencoder/tiny.py", *hasty)
    argv = (*given("inpaint"), one, other, "--guidance-scale", 20)
    drawn = sample_images(runs / "guided", tmp_path / "out", *argv, "--seed", "0-1")
    image, hole = known(tmp_path)
    assert len(drawn) == 4 and all(np.array_equal(x[~hole], image[~hole]) for x in drawn)
    assert len({x[hole].tobytes() for x in drawn}) == 4  # another for either seed, and for what is said


# ---- refused, each in one line, with nothing written


def broken(tmp_path):
    """What is wrong -> the task, the options and what the line must say."""
    for name, size in (("image", (32, 32)), ("odd", (33, 32)), ("wide", (64, 32)), ("black", (32, 32))):
        Image.new("RGB", size, "gray" if name != "black" else "black").save(tmp_path / f"{name}.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    Image.new("L", (32, 32), 5).save(tmp_path / "unknown.png")
    Image.new("L", (30, 32), 1).save(tmp_path / "map.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.json").write_text("boxes")
    for name, bbox, kind in (("outside", [0.5, 0.5, 0.6, 0.2], 0), ("kind", [0.1, 0.1, 0.2, 0.2], 9),
                             ("flat", [0.1, 0.1, 0.0, 0.2], 0)):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"objects": {"bbox": [bbox], "categories": [kind]}}))
    many = {"objects": {"bbox": [[0, 0, 1, 1]] * 3, "categories": [0] * 3}}
    (tmp_path / "many.json").write_text(json.dumps(many))
    pixels = {"width": 640, "height": 480, "objects": {"bbox": [[600, 0, 50, 10]], "categories": [0]}}
    (tmp_path / "pixels.json").write_text(json.dumps(pixels))
    at, image, mask = tmp_path.joinpath, ("--image", tmp_path / "image.png"), ("--mask", tmp_path / "mask.png")
    return {
        "class out of range": ("class", ("--class", "4"), "from 0 to 3"),
        "unknown class": ("class", ("--class", "dog"), "circle, square, triangle, star"),
        "nothing given": ("semantic", (), "--segmentation (a map"),
        "half given": ("inpaint", image, "--mask"),
        "half given elsewhere": ("uncond", mask, "--image and --mask go together"),
        "too much": ("class", ("--class", "1", "--prompt", "a star"), "does not take --prompt; it takes --class"),
        "too much for none": ("uncond", ("--class", "1"), "it is unconditional"),
        "mask of another size": ("inpaint", (*image, "--mask", at("wide.png")), "64x32, but --image"),
        "mask that is black": ("inpaint", (*image, "--mask", at("black.png")), "black everywhere"),
        "image of no multiple": ("inpaint", ("--image", at("odd.png"), "--mask", at("odd.png")), "multiples of 4"),
        "no image": ("inpaint", ("--image", at("text.json"), *mask), "is no image"),
        "no file": ("superres", ("--low-res", at("nowhere.png")), "nowhere.png"),
        "box outside": ("layout", ("--layout", at("outside.json")), "[0.5, 0.5, 0.6, 0.2] is not inside"),
        "box outside, in pixels": ("layout", ("--layout", at("pixels.json")), "not inside the image of 640 x 480"),
        "box without width": ("layout", ("--layout", at("flat.json")), "is not inside"),
        "box of an unknown class": ("layout", ("--layout", at("kind.json")), "class 9"),
        "too many boxes": ("layout", ("--layout", at("many.json")), "3 boxes; this run takes at most 2"),
        "layout that is no JSON": ("layout", ("--layout", at("text.json")), '"objects"'),
        "map with unknown ids": ("semantic", ("--segmentation", at("unknown.png")), "class 5"),
        "map in colour": ("semantic", ("--segmentation", at("image.png")), "it must be gray"),
        "map of no multiple": ("semantic", ("--segmentation", at("map.png")), "30x32"),
        "empty folder": ("semantic", ("--segmentation", at("empty")), "empty folder"),
        "another height": ("superres", ("--low-res", at("image.png"), "--height", 64), "128x128; leave them out"),
        "as many of each": ("inpaint", (*image, *image, *image, *mask, *mask), "3 x --image, 2 x --mask"),
        "strength without image": ("uncond", ("--strength", 0.5), "--init-image"),
        "strength of nothing": ("uncond", ("--init-image", at("image.png"), "--strength", 0), "strength is 0"),
        "image to draw over": ("uncond", ("--init-image", at("nowhere.png")), "nowhere.png"),
        "negative without text": ("class", ("--class", 1, "--negative-prompt", "a star"), "--negative-prompt"),
        "nothing to guide": ("semantic", ("--segmentation", at("mask.png"), "--guidance-scale", 2), ""),
    }  # fmt: skip


def test_wrong_and_missing_inputs_each_give_one_clear_line(trained, refused, tmp_path):
    wrong = broken(tmp_path)
    for what, (task, argv, line) in wrong.items():
        error = refused("sample", "--run", trained(task), "--output", tmp_path / "out", *argv)
        assert line in error, what
        assert not (tmp_path / "out").exists(), what


def test_data_that_lacks_what_a_condition_reads_is_refused(refused, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    argv = ("data=Folder", f"data.path={tmp_path / 'images'}", "data.size=32", "train.batch_size=2")
    first = "autoencoder=recipes/autoencoder/tiny.py"
    for task, what in (("semantic", "map_file_name"), ("layout", "objects"), ("class", "label")):
        recipe = f"recipes/diffusion/{task}.py"
        args = [word for word in TWO if not word.startswith("data.")]
        assert what in refused("train_diffusion", recipe, first, *args, "data=Folder", *argv[1:])


def test_a_low_resolution_condition_without_its_maker_is_refused(refused):
    assert "add Degrade() to derived_fields" in refused(
        "train_diffusion", "recipes/diffusion/superres.py", "derived_fields="
    )


def test_a_scale_that_does_not_divide_the_images_is_refused(refused, runs):
    argv = ("recipes/diffusion/superres.py", "autoencoder=recipes/autoencoder/tiny.py", *TWO, "derived_fields.0.scale=3")
    assert "scale of Degrade is 3; it must divide the sides of the images, 32x32" in refused("train_diffusion", *argv)
    assert not runs.exists()


# ---- starting from another run


@pytest.mark.parametrize("other", [("data.seed=5",), ("data.height=48", "data.width=40")])
def test_a_run_starts_from_the_average_of_another_also_at_another_size(other, trained, runs):
    first = ("autoencoder=recipes/autoencoder/tiny.py", *TWO, "train.lr=1e-9")
    source = trained("semantic")
    call("train_diffusion", "recipes/diffusion/semantic.py", *first, f"init={source}", *other, "name=fine")
    ours, theirs = (latentdiff.load_run(path).state_dict() for path in (runs / "fine", source))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert metrics_of(runs / "fine")[0]["step"] == 1  # a run of its own


def test_tensors_that_do_not_fit_are_listed_and_refused_unless_asked_for(trained, runs, refused):
    first = ("autoencoder=recipes/autoencoder/tiny.py", *TWO, "train.lr=1e-9", f"init={trained('semantic')}")
    wider = ("recipes/diffusion/semantic.py", *first, "conditions.0.channels=4", "name=fine")
    error = refused("train_diffusion", *wider)
    assert "2 tensors do not fit" in error and "conditioner.parts.0.channel_mapper.weight ([8, 5, 1, 1] in" in error
    assert "unet.conv_in.weight" in error and not (runs / "fine").exists()
    call("train_diffusion", *wider, "init_partial=true")
    ours, theirs = (latentdiff.load_run(p).unet.state_dict() for p in (runs / "fine", trained("semantic")))
    assert torch.allclose(ours["conv_out.weight"], theirs["conv_out.weight"], atol=1e-6)
    assert ours["conv_in.weight"].shape != theirs["conv_in.weight"].shape


def test_a_run_with_text_keeps_the_tokens_and_the_autoencoder_of_the_run_that_it_starts_from(trained, runs):
    argv = (*TWO, "data.wording=varied", "data.kinds=ring", f"init={trained('text')}", "autoencoder=", "name=fine")
    call("train_diffusion", "recipes/diffusion/text.py", *argv)
    assert (runs / "fine" / "tokenizer.json").read_bytes() == (trained("text") / "tokenizer.json").read_bytes()
    ours, theirs = (latentdiff.load_run(p).autoencoder.weights_hash() for p in (runs / "fine", trained("text")))
    assert ours == theirs


def test_stage_one_starts_from_another_run_as_well(stage_one_run, runs, refused):
    recipe = "recipes/autoencoder/tiny.py"
    call("train_autoencoder", recipe, "train.steps=1", "train.lr=1e-9", f"init={stage_one_run}", "name=fine")
    ours, theirs = (latentdiff.load_run(p).encoder.state_dict() for p in (runs / "fine", stage_one_run))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    error = refused("train_autoencoder", recipe, "autoencoder.channels=16", f"init={stage_one_run}", "name=wide")
    assert "tensors do not fit" in error and "init_partial=true" in error
    assert "it must be DiffusionRecipe" in refused("train_diffusion", "recipes/diffusion/tiny.py",
                                                   f"init={stage_one_run}", "name=other")  # fmt: skip
