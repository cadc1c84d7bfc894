"""sample.py: the same picture however it is asked for, with its parameters inside, and nothing overwritten."""

import json

import numpy as np
import pytest
from conftest import STAGE_TWO, call, written
from PIL import Image

PROMPT = "a large red star on a black background"
OTHER = "a small blue ring on a white background"


@pytest.fixture
def sample(reader, tmp_path):
    """sample(words..., into="out") -> the folder of pictures; four steps, guided."""

    def sample(*words, into="out"):
        call("sample", "--run", reader, "--output", tmp_path / into, "--steps", 4, "--guidance-scale", 2, *words)
        return tmp_path / into

    return sample


def pictures(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("0*.png"))}


def test_a_seed_names_a_picture_for_any_batch_size(sample):
    """--seed 7 --num-images 3 means 7, 8, 9 for every prompt."""
    words = ("--prompt", PROMPT, "--prompt", OTHER)
    whole = pictures(sample(*words, "--seed", 7, "--num-images", 3, into="whole"))
    single = pictures(sample(*words, "--seed", 7, "--num-images", 3, "--batch-size", 1, into="single"))
    ranged = pictures(sample(*words, "--seed", "7-9", "--batch-size", 4, into="ranged"))
    names = [f"{i:05d}-s{seed}.png" for i, seed in enumerate([7, 8, 9] * 2)]
    assert list(whole) == list(single) == list(ranged) == names
    for other in (single, ranged):
        assert max(np.abs(whole[name] - other[name]).max() for name in names) <= 1
    alone = pictures(sample("--prompt", OTHER, "--seed", 8, into="alone"))["00000-s8.png"]
    assert np.abs(alone - whole["00004-s8.png"]).max() <= 1
    assert np.abs(whole["00000-s7.png"] - whole["00001-s8.png"]).max() > 20  # another seed
    assert np.abs(whole["00000-s7.png"] - whole["00003-s7.png"]).max() > 20  # another prompt


def test_a_stochastic_sampler_draws_the_same_for_any_batch_size(sample):
    words = ("--prompt", PROMPT, "--num-images", 3, "--sampler", "ddpm")
    whole, single = (pictures(sample(*words, "--batch-size", size, into=f"{size}")) for size in (3, 1))
    assert max(np.abs(whole[name] - single[name]).max() for name in whole) <= 1


def test_the_parameters_are_inside_the_picture(sample, reader):
    folder = sample(
        "--prompt", PROMPT, "--seed", 7, "--negative-prompt", "a ring", "--H", 40, "--width=48", "--no-grid"
    )
    with Image.open(folder / "00000-s7.png") as image:
        assert image.size == (48, 40)
        about, text = json.loads(image.text["latentdiff"]), image.text["parameters"]
    assert about | {"prompt": PROMPT, "seed": 7, "height": 40, "width": 48, "steps": 4, "guidance_scale": 2.0,
                    "negative_prompt": "a ring", "run": reader.name, "sampler": "dpmpp_2m"} == about  # fmt: skip
    assert text.startswith(PROMPT) and "Negative prompt: a ring" in text and "Seed: 7, Size: 48x40" in text
    row = json.loads((folder / "samples.jsonl").read_text())
    assert row == {"file_name": "00000-s7.png"} | about
    assert written(folder) == ["00000-s7.png", "samples.jsonl"]


def test_nothing_is_overwritten(sample):
    words = ("--prompt", PROMPT, "--num-images", 2)
    folder = sample(*words)
    before = {name: (folder / name).read_bytes() for name in ("00000-s0.png", "00001-s1.png", "grid.png")}
    sample(*words)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert set(written(folder)) == {*before, "00002-s0.png", "00003-s1.png", "grid-1.png", "samples.jsonl"}
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 4


def test_prompts_come_from_a_file_as_well(sample, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n  {OTHER}  \n")
    folder = sample("--from-file", tmp_path / "prompts.txt", "--n_samples", 2, "--ddim_steps", 2)
    prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert prompts == [PROMPT, PROMPT, OTHER, OTHER]


def test_a_negative_prompt_and_guidance_change_the_picture(sample):
    images = [
        pictures(sample("--prompt", PROMPT, *words, into=str(i)))["00000-s0.png"]
        for i, words in enumerate([(), ("--negative-prompt", OTHER), ("--scale", 1), ("--guidance-rescale", 1)])
    ]
    assert all(np.abs(images[0] - image).max() > 2 for image in images[1:])


def test_the_newest_run_that_takes_a_prompt_is_the_default(reader, unbroken_one, copy_of, tmp_path, capsys):
    copy_of(reader, "reads")
    call(*STAGE_TWO, "conditions=", "sampling.guidance_scale=1", "train.steps=1", "name=blind")
    copy_of(unbroken_one, "first-stage")
    (copy_of(reader, "torn") / "recipe.json").unlink()
    call("sample", "--prompt", PROMPT, "--steps", 2, "--output", tmp_path / "a")
    assert '"run": "reads"' in (tmp_path / "a" / "samples.jsonl").read_text()
    call("sample", "--steps", 2, "--output", tmp_path / "b")
    assert '"run": "blind"' in (tmp_path / "b" / "samples.jsonl").read_text()


# ---- refused, with nothing written


REFUSED = {
    ("--prompt", "star " * 60): "at most 30",
    ("--prompt", PROMPT, "--prompt", "star " * 60, "--batch-size", 1): "at most 30",
    ("--prompt", PROMPT, "--negative-prompt", "star " * 60): "at most 30",
    ("--prompt", PROMPT, "--negative-prompt", "a star", "--guidance-scale", 1): "--negative-prompt does nothing",
    ("--prompt", PROMPT, "--sampler", "magic"): "dpmpp_2m",
    ("--prompt", PROMPT, "--eta", 0.5): "eta",
    ("--prompt", PROMPT, "--steps", 0): "--steps",
    ("--prompt", PROMPT, "--steps", 5000): "1000",
    ("--prompt", PROMPT, "--steps", "many"): "--steps",
    ("--prompt", PROMPT, "--height", 33): "multiple of 4",
    ("--prompt", PROMPT, "--tile", 3): "--tile 3",
    ("--prompt", PROMPT, "--coding", "blended"): "goes with --tile",
    ("--prompt", PROMPT, "--tile", 16, "--coding", "rough"): "one of exact, spilled, blended",
    ("--prompt", PROMPT, "--seed", "9-7"): "--seed",
    ("--prompt", PROMPT, "--precision", "fp8"): "fp8",
    ("--prompt", PROMPT, "--device", "abacus"): "abacus",
    ("--prompt", PROMPT, "--colour", "red"): "--colour",
    ("--prompts-file", "nowhere.txt"): "nowhere.txt",
    (): "--prompt",
}


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(map(str, words))[-40:] or "no prompt")
def test_what_cannot_be_drawn_is_refused_and_leaves_no_folder(words, reader, refused, tmp_path):
    error = refused("sample", "--run", reader, "--output", tmp_path / "out", *words)
    assert REFUSED[words] in error
    assert not (tmp_path / "out").exists()


def test_guidance_away_from_a_run_is_not_ignored(reader, refused, tmp_path):
    words = ("--run", reader, "--prompt", PROMPT, "--autoguide", reader, "--output", tmp_path / "out")
    assert "--autoguide does nothing" in refused("sample", *words, "--guidance-scale", 1)
    assert "give one" in refused("sample", *words, "--guidance-scale", 2, "--negative-prompt", "a star")
    assert not (tmp_path / "out").exists()


def test_an_earlier_checkpoint_guides_with_its_own_weights(unbroken_two, tmp_path):
    words = ("--run", unbroken_two, "--prompt", PROMPT, "--steps", 2, "--guidance-scale", 9, "--output")
    first = unbroken_two / "checkpoints" / "step_00000010"
    for name, guide in (("itself", unbroken_two), ("earlier", first)):
        call("sample", *words, tmp_path / name, "--autoguide", guide)
    itself, earlier = (pictures(tmp_path / name) for name in ("itself", "earlier"))
    assert itself.keys() == earlier.keys() and not any(np.array_equal(itself[n], earlier[n]) for n in itself)


def test_runs_that_cannot_draw_are_refused(unbroken_one, refused, tmp_path):
    out = ("--output", tmp_path / "out")
    assert "nowhere" in refused("sample", "--run", "nowhere", "--prompt", PROMPT, *out)
    assert "stage-one" in refused("sample", "--run", unbroken_one, "--prompt", PROMPT, *out)
    assert "no finished" in refused("sample", "--prompt", PROMPT, *out)
    call(*STAGE_TWO, "conditions=", "sampling.guidance_scale=1", "train.steps=1", "name=blind")
    assert "--prompt" in refused("sample", "--run", "blind", "--prompt", PROMPT, *out)
    assert "guidance" in refused("sample", "--run", "blind", "--guidance-scale", 3, *out)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(reader, refused, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert "--output" in refused("sample", "--run", reader, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_damaged_weights_are_refused(reader, copy_of, refused, tmp_path):
    run = copy_of(reader)
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[: len(content) // 2])
    error = refused("sample", "--run", run, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert "model.safetensors" in error
    (run / "recipe.json").write_text("{")
    assert "recipe.json" in refused("sample", "--run", run, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
