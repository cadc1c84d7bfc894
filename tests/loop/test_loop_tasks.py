"""Every small recipe trains for two steps, samples from its inputs, and refuses wrong inputs with a one-line error."""

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
    root, folders = tmp_path_factory.mktemp("tasks"), {}

    def trained(task, *argv):
        if (task, argv) not in folders:
            source = () if task == "pixel" else ("autoencoder=recipes/autoencoder/tiny.py",)
            if task == "distilled":  # the autoencoder is that of the teacher
                source = (f"init={trained('text')}",)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LATENTDIFF_RUNS", str(root))
                name = f"{task}{len(folders)}"
                call("train_diffusion", f"recipes/diffusion/{task}.py", *TWO, *source, *argv, f"name={name}")
            folders[task, argv] = root / name
        return folders[task, argv]

    return trained


@pytest.fixture
def inputs(tmp_path):
    """inputs(task): the options of one input of the task, whose files lie in tmp_path."""
    scene = ShapesDataset(ShapesConfig(kinds=("circle", "star"), max_objects=2), "test").item(0, 0)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 4:28] = 255
    boxes = scene["boxes"].astype(float)
    bbox = np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], axis=1)
    for name, pixels in {"image": scene["image"], "map": scene["segmentation"], "mask": mask,
                         "low_res": scene["image"][::4, ::4]}.items():  # fmt: skip
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    layout = {"objects": {"bbox": bbox.tolist(), "categories": ["circle" if k == 0 else "star" for k in boxes[:, 4]]}}
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    files = {"class": ("--class", "star"), "layout": ("--layout", tmp_path / "layout.json"), "uncond": (), "pixel": (),
             "semantic": ("--segmentation", tmp_path / "map.png"), "superres": ("--low-res", tmp_path / "low_res.png"),
             "inpaint": ("--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png"),
             **dict.fromkeys(("text", "distilled"), ("--prompt", "a red star"))}  # fmt: skip
    return files.__getitem__


def read_images(folder):
    return [np.asarray(Image.open(folder / name)) for name in files_in(folder) if name.endswith(".png")]


@pytest.mark.parametrize("task", TASKS)
def test_every_small_recipe_trains_for_two_steps_and_samples(task, trained, inputs, tmp_path):
    run = trained(task)
    assert len(column(run, "loss")) == 2 and len(column(run, "val_loss")) == 1
    assert np.isfinite(column(run, "loss")).all() and (run / "samples" / "00000002.png").exists()
    call("sample", "--run", run, "--output", tmp_path / "out", *SEEDS, "--seed", "0-1", *inputs(task))
    samples = read_images(tmp_path / "out")
    assert [x.shape for x in samples] == [(32, 32, 3)] * 2 and not np.array_equal(*samples)


def test_the_help_of_a_run_lists_its_inputs(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sample.py", "--run", str(trained("semantic")), "--help"])
    with pytest.raises(SystemExit):
        cli.answer_help("usage", sample_options.describe_run)
    assert "--segmentation" in (text := capsys.readouterr().out) and "class numbers from 0 to 4" in text


def test_the_newest_run_that_takes_the_inputs_is_the_default(trained, inputs, runs, tmp_path):
    for task in ("inpaint", "uncond", "semantic"):  # uncond is newer than inpaint, which is trained for inpainting
        shutil.copytree(trained(task), runs / task)
    for task in ("semantic", "inpaint", "uncond"):
        call("sample", "--output", tmp_path / task, *SEEDS, *inputs(task))
        assert json.loads((tmp_path / task / "samples.jsonl").read_text())["run"] == task


@pytest.mark.parametrize("task, argv", [("inpaint", ()), ("uncond", ()), ("text", ("--prompt", "a red star"))])
def test_known_pixels_are_kept_exactly_and_the_others_depend_on_the_seed(task, argv, trained, inputs, tmp_path):
    """Also in a run that was not trained with masks: known pixels are blended in at every step."""
    samples = sample_images(trained(task), tmp_path / "out", "--seed", "0-1", *inputs("inpaint"), *argv)
    image, masked = image_and_mask(tmp_path)
    assert len(samples) == 2 and all(np.array_equal(x[~masked], image[~masked]) for x in samples)
    assert not np.array_equal(samples[0][masked], samples[1][masked])


def image_and_mask(folder):
    """The image and the mask, bool [H, W], of inputs("inpaint")."""
    return np.asarray(Image.open(folder / "image.png")), np.asarray(Image.open(folder / "mask.png")) > 0


def test_samples_of_evaluation_and_training_keep_their_known_pixels(trained, runs):
    run = Path(shutil.copytree(trained("inpaint"), runs / "run"))
    call("evaluate", run, "--count", 3, "--batch-size", 2, "--features", "autoencoder", "--no-report")
    r = read_recipe(run, DiffusionRecipe)
    data = recipe.with_condition_fields(recipe.open_data(r, "val"), r.conditions, r.derived_fields)
    (first,) = (run / "evaluation").glob("samples-*/00000.png")
    for i, path in enumerate(sorted(first.parent.glob("*.png"))):
        item = data.item(i, rng.key(0, "wanted", i))
        assert changed_regions(np.asarray(Image.open(path)), item) == {"masked"}
    grid = np.asarray(Image.open(run / "samples" / "00000002.png"))
    for i, item in enumerate(data.item(i, rng.key("in order", i)) for i in range(4)):
        left = 2 + 98 * i  # enlarged to 96 pixels
        assert changed_regions(grid[2:98:3, left : left + 96 : 3], item) == {"masked"}


def changed_regions(sample, item):
    """Where a sample [H, W, 3] differs from the image of the item: "masked", "known" or both."""
    regions = np.where(item["mask"] > 0, "masked", "known")
    return set(regions[(sample != item["image"]).any(-1)].tolist())


def test_blending_depends_on_the_known_pixels(trained, inputs, tmp_path):
    first = sample_images(trained("uncond"), tmp_path / "a", *inputs("inpaint"))[0]
    image, masked = image_and_mask(tmp_path)
    Image.fromarray(255 - image).save(tmp_path / "image.png")
    other = sample_images(trained("uncond"), tmp_path / "b", *inputs("inpaint"))[0]
    assert not np.array_equal(first[masked], other[masked])


def sample_images(run, folder, *argv):
    call("sample", "--run", run, "--output", folder, *SEEDS, *argv)
    return read_images(folder)


def test_each_input_of_a_folder_is_sampled_at_its_own_size(trained, tmp_path):
    (tmp_path / "maps").mkdir()
    for name, size in (("a", (32, 32)), ("b", (64, 48)), ("c", (64, 48))):
        Image.new("L", size, 1).save(tmp_path / "maps" / f"{name}.png")
    argv = ("--segmentation", tmp_path / "maps", "--num-images", 2)
    samples = sample_images(trained("semantic"), tmp_path / "out", *argv)
    assert [x.shape[:2] for x in samples] == [(32, 32)] * 2 + [(48, 64)] * 4
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [record["segmentation"][-5:] for record in records] == ["a.png"] * 2 + ["b.png"] * 2 + ["c.png"] * 2


def test_samples_do_not_depend_on_the_other_inputs_of_a_batch(trained, inputs, tmp_path):
    argv = ("--layout", inputs("layout")[1])
    (tmp_path / "none.json").write_text('{"objects": {"bbox": [], "categories": []}}')
    both = sample_images(trained("layout"), tmp_path / "a", *argv, "--layout", tmp_path / "none.json")
    single = sample_images(trained("layout"), tmp_path / "b", "--layout", tmp_path / "none.json")
    assert np.abs(both[1].astype(int) - single[0].astype(int)).max() <= 1


def test_strength_sets_how_far_an_initial_image_is_changed(trained, inputs, tmp_path):
    inputs("inpaint")
    image = np.asarray(Image.open(tmp_path / "image.png")).astype(int)
    argv = ("--init-image", tmp_path / "image.png", "--steps", 10, "--strength")
    run = trained("pixel", "schedule.snr_shift=1")  # with that of the recipe, a tenth of the steps is mostly noise
    weak, strong = (sample_images(run, tmp_path / s, *argv, s)[0] for s in ("0.1", "1"))
    assert np.abs(weak - image).mean() < 0.5 * np.abs(strong - image).mean()


@pytest.mark.parametrize(("tiling", "largest"),
                         [("exact", {}), ("offloaded", {}), ("blended", {"Encoder": 32, "Decoder": 8})])  # fmt: skip
@pytest.mark.parametrize("argv", [("inpaint", "--image"), ("uncond", "--image"), ("uncond", "--init-image")])
def test_larger_images_are_encoded_and_decoded_in_tiles(argv, tiling, largest, trained, tmp_path, monkeypatch):
    run, option = trained(argv[0]), argv[1]
    image = ShapesDataset(ShapesConfig(height=64, width=96), "test").item(0, 0)["image"]
    mask = np.zeros((64, 96), np.uint8)
    mask[20:50, 30:80] = 255
    for name, pixels in (("image", image), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    argv = (option, tmp_path / "image.png", "--tile-size", 32, "--tiling", tiling)
    argv += ("--mask", tmp_path / "mask.png") if option == "--image" else ("--height", 64, "--width", 96)
    sizes = {}
    for network in (Encoder, Decoder):
        monkeypatch.setattr(network, "features", recording(network.features, sizes))
    (sample,) = sample_images(run, tmp_path / "out", *argv)
    assert sizes == largest and sample.shape == (64, 96, 3)  # exact tiling calls the layers, not the networks
    assert option == "--init-image" or np.array_equal(sample[mask == 0], image[mask == 0])


def recording(features, sizes):
    """features() that records the longest side of its inputs as sizes[class name]."""

    def wrapped(self, x):
        name = type(self).__name__
        sizes[name] = max(sizes.get(name, 0), *x.shape[2:])
        return features(self, x)

    return wrapped


def test_progressive_writes_a_row_of_intermediate_results(trained, tmp_path):
    call("sample", "--run", trained("uncond"), "--output", tmp_path, "--steps", 4, "--progressive")
    row = np.asarray(Image.open(tmp_path / "00000-s0-steps.png"))
    last = np.asarray(Image.open(tmp_path / "00000-s0.png"))
    assert row.shape == (36, 5 * 34 + 2, 3) and np.array_equal(row[2:34, -34:-2], last)


def test_sampling_from_fields_in_python_equals_the_script(trained, inputs, tmp_path):
    samples = sample_images(trained("inpaint"), tmp_path / "out", *inputs("inpaint"), "--num-images", 2)
    model = latentdiff.load_run(trained("inpaint"))
    image = torch.from_numpy(np.asarray(Image.open(tmp_path / "image.png")).copy())
    mask = torch.from_numpy((np.asarray(Image.open(tmp_path / "mask.png")) > 0).astype(np.uint8))
    x = model.sample(fields={"image": torch.stack([image] * 2), "mask": torch.stack([mask] * 2)}, steps=2)
    expected = np.stack(samples).transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(x.numpy() - expected).max() <= 1.01 / 127.5
    model = latentdiff.load_run(trained("layout"))
    assert model.sample(fields={"boxes": [np.ones((1, 5)), np.ones((2, 5))]}, steps=2).shape == (2, 3, 32, 32)
    assert model.sample(fields={"boxes": [np.ones((1, 5))]}, steps=2, height=40).shape == (1, 3, 40, 32)


def test_the_bsr_degradation_is_used_in_training(trained, inputs, tmp_path):
    run = trained("superres", "derived_fields.0.kind=bsr")
    bsr, bicubic = (column(r, "grad_norm") for r in (run, trained("superres")))
    assert len(bsr) == 2 and np.isfinite(bsr).all() and bsr[0] != bicubic[0]  # the same images, degraded differently
    assert sample_images(run, tmp_path / "out", *inputs("superres"))[0].shape == (32, 32, 3)


@pytest.mark.parametrize(
    "task, one, other",
    [("tiny", "--prompt=a red star", "--prompt=a blue circle"), ("class", "--class=star", "--class=circle")],
)
def test_a_caption_or_a_class_can_be_combined_with_a_mask(task, one, other, runs, inputs, tmp_path):
    recipe = tmp_path / "guided.py"
    recipe.write_text(
        '"""Inpainting with another condition."""\n'
        "from dataclasses import replace\nfrom latentdiff.config import read_recipe\n"
        f'base, inpaint = (read_recipe(f"recipes/diffusion/{{name}}.py") for name in ("{task}", "inpaint"))\n'
        "conditions = (*base.conditions, *inpaint.conditions)\n"
        "recipe = replace(base, derived_fields=inpaint.derived_fields, conditions=conditions)\n"
    )
    fast = ("train.warmup_steps=0", "train.lr=0.03", "train.ema_decay=0")  # so that two steps have an effect
    call("train_diffusion", recipe, *TWO, "autoencoder=recipes/autoencoder/tiny.py", *fast)
    argv = (*inputs("inpaint"), one, other, "--guidance-scale", 20)
    samples = sample_images(runs / "guided", tmp_path / "out", *argv, "--seed", "0-1")
    image, masked = image_and_mask(tmp_path)
    assert len(samples) == 4 and all(np.array_equal(x[~masked], image[~masked]) for x in samples)
    assert len({x[masked].tobytes() for x in samples}) == 4  # different for each seed and each condition


# ---- refused, each with a one-line error and without output


def wrong_inputs(tmp_path):
    """Problem -> the task, the options and a part of the error message."""
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
        "half given for another task": ("uncond", mask, "--image and --mask go together"),
        "too much": ("class", ("--class", "1", "--prompt", "a star"), "does not take --prompt; it takes --class"),
        "too much for none": ("uncond", ("--class", "1"), "it is unconditional"),
        "mask of another size": ("inpaint", (*image, "--mask", at("wide.png")), "64x32, but --image"),
        "black mask": ("inpaint", (*image, "--mask", at("black.png")), "black everywhere"),
        "image size not divisible": ("inpaint", ("--image", at("odd.png"), "--mask", at("odd.png")), "multiples of 4"),
        "not an image": ("inpaint", ("--image", at("text.json"), *mask), "is not an image"),
        "no file": ("superres", ("--low-res", at("nowhere.png")), "nowhere.png"),
        "box outside": ("layout", ("--layout", at("outside.json")), "[0.5, 0.5, 0.6, 0.2] is not inside"),
        "box outside, in pixels": ("layout", ("--layout", at("pixels.json")), "not inside the image of 640 x 480"),
        "box without width": ("layout", ("--layout", at("flat.json")), "is not inside"),
        "box of an unknown class": ("layout", ("--layout", at("kind.json")), "class 9"),
        "too many boxes": ("layout", ("--layout", at("many.json")), "3 boxes; this run takes at most 2"),
        "layout that is not JSON": ("layout", ("--layout", at("text.json")), '"objects"'),
        "map with unknown ids": ("semantic", ("--segmentation", at("unknown.png")), "class 5"),
        "map in colour": ("semantic", ("--segmentation", at("image.png")), "it must be gray"),
        "map size not divisible": ("semantic", ("--segmentation", at("map.png")), "30x32"),
        "empty folder": ("semantic", ("--segmentation", at("empty")), "empty folder"),
        "another height": ("superres", ("--low-res", at("image.png"), "--height", 64), "128x128; leave them out"),
        "different numbers of inputs": ("inpaint", (*image, *image, *image, *mask, *mask), "3 x --image, 2 x --mask"),
        "strength without image": ("uncond", ("--strength", 0.5), "--init-image"),
        "strength of zero": ("uncond", ("--init-image", at("image.png"), "--strength", 0), "strength is 0"),
        "missing initial image": ("uncond", ("--init-image", at("nowhere.png")), "nowhere.png"),
        "negative without text": ("class", ("--class", 1, "--negative-prompt", "a star"), "--negative-prompt"),
        "nothing to guide": ("semantic", ("--segmentation", at("mask.png"), "--guidance-scale", 2), ""),
    }  # fmt: skip


def test_wrong_and_missing_inputs_are_refused_in_one_line(trained, refused, tmp_path):
    for problem, (task, argv, message) in wrong_inputs(tmp_path).items():
        error = refused("sample", "--run", trained(task), "--output", tmp_path / "out", *argv)
        assert message in error, problem
        assert not (tmp_path / "out").exists(), problem


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


def test_a_low_resolution_condition_without_its_derived_field_is_refused(refused):
    assert "add Degrade() to derived_fields" in refused(
        "train_diffusion", "recipes/diffusion/superres.py", "derived_fields="
    )


def test_a_scale_that_does_not_divide_the_images_is_refused(refused, runs):
    first = "autoencoder=recipes/autoencoder/tiny.py"
    argv = ("recipes/diffusion/superres.py", first, *TWO, "derived_fields.0.scale=3")
    assert "scale of Degrade is 3; it must divide the sides of the images, 32x32" in refused("train_diffusion", *argv)
    assert not runs.exists()


# ---- starting from another run


@pytest.mark.parametrize("other", [("data.seed=5",), ("data.height=48", "data.width=40")])
def test_a_run_is_initialized_from_the_ema_weights_of_another_even_at_another_size(other, trained, runs):
    first = ("autoencoder=recipes/autoencoder/tiny.py", *TWO, "train.lr=1e-9")
    source = trained("semantic")
    call("train_diffusion", "recipes/diffusion/semantic.py", *first, f"init={source}", *other, "name=fine")
    new, source = (latentdiff.load_run(path).state_dict() for path in (runs / "fine", source))
    assert all(torch.allclose(new[name], source[name], atol=1e-6) for name in source)
    assert metrics_of(runs / "fine")[0]["step"] == 1  # a new run


def test_tensors_that_do_not_fit_are_refused_unless_init_partial_is_set(trained, runs, refused):
    first = ("autoencoder=recipes/autoencoder/tiny.py", *TWO, "train.lr=1e-9", f"init={trained('semantic')}")
    wider = ("recipes/diffusion/semantic.py", *first, "conditions.0.channels=4", "name=fine")
    error = refused("train_diffusion", *wider)
    assert "2 tensors do not fit" in error and "conditioner.parts.0.channel_mapper.weight ([8, 5, 1, 1] in" in error
    assert "unet.conv_in.weight" in error and not (runs / "fine").exists()
    call("train_diffusion", *wider, "init_partial=true")
    new, source = (latentdiff.load_run(p).unet.state_dict() for p in (runs / "fine", trained("semantic")))
    assert torch.allclose(new["conv_out.weight"], source["conv_out.weight"], atol=1e-6)
    assert new["conv_in.weight"].shape != source["conv_in.weight"].shape


def test_a_run_with_text_keeps_the_tokenizer_and_autoencoder_of_its_initial_run(trained, runs):
    argv = (*TWO, "data.wording=varied", "data.kinds=ring", f"init={trained('text')}", "autoencoder=", "name=fine")
    call("train_diffusion", "recipes/diffusion/text.py", *argv)
    assert (runs / "fine" / "tokenizer.json").read_bytes() == (trained("text") / "tokenizer.json").read_bytes()
    new, source = (latentdiff.load_run(p).autoencoder.weights_hash() for p in (runs / "fine", trained("text")))
    assert new == source


def test_stage_one_is_initialized_from_another_run(stage_one_run, runs, refused):
    recipe = "recipes/autoencoder/tiny.py"
    call("train_autoencoder", recipe, "train.steps=1", "train.lr=1e-9", f"init={stage_one_run}", "name=fine")
    new, source = (latentdiff.load_run(p).encoder.state_dict() for p in (runs / "fine", stage_one_run))
    assert all(torch.allclose(new[name], source[name], atol=1e-6) for name in source)
    error = refused("train_autoencoder", recipe, "autoencoder.channels=16", f"init={stage_one_run}", "name=wide")
    assert "tensors do not fit" in error and "init_partial=true" in error
    assert "it must be DiffusionRecipe" in refused("train_diffusion", "recipes/diffusion/tiny.py",
                                                   f"init={stage_one_run}", "name=other")  # fmt: skip
