"""evaluate.py: figures of either stage, or of folders, as JSON; the same whenever and by however many it is asked."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import STAGE_ONE, STAGE_TWO, call, written

from latentdiff.evaluation import run, stage_two
from latentdiff.sampling import options as sampling_options
from latentdiff.training.distributed import World

SMALL = ("--count", 8, "--prompts", 4, "--features", "autoencoder", "--no-report")
CLOCKS = ("images_per_second", "peak_memory_mib")


def figures_of(path) -> dict:
    """Without what a clock, or the machine's memory, says."""
    figures = json.loads(path.read_text())
    return {name: value for name, value in figures.items() if name not in CLOCKS}


def test_stage_one_is_measured_by_its_reconstructions_and_its_latents(unbroken_one, tmp_path, capsys):
    call("evaluate", unbroken_one, "--output", tmp_path / "figures.json", *SMALL[4:])
    figures = figures_of(tmp_path / "figures.json")
    assert figures["step"] == 20 and figures["reconstructions"] == 16 and 0 < figures["psnr"] < 60
    assert {"ssim", "rfid", "latent_std", "latent_noise_share", "equivariance_turn", "equivariance_half"} <= set(
        figures
    )
    assert figures["latent_std"] == pytest.approx(1, abs=0.1)
    assert figures["protocol"]["features"]["name"] == "the frozen autoencoder's encoder"
    assert "psnr" in capsys.readouterr().out
    assert not (unbroken_one / "evaluation.json").exists()


def test_stage_two_is_measured_by_what_it_draws_and_says_how(unbroken_two, copy_of):
    run = copy_of(unbroken_two)
    call("evaluate", run, *SMALL, "--steps", 3, "--seed", 5)
    figures = json.loads((run / "evaluation.json").read_text())
    assert 0 <= figures["prompt_accuracy_low"] <= figures["prompt_accuracy"] <= figures["prompt_accuracy_high"] <= 1
    assert figures["prompts"] == 4 and "prompt_accuracy_left_out" in figures
    wanted = "fid kid kid_error precision recall nearest_ratio copies fid_real images_per_second peak_memory_mib"
    assert set(wanted.split()) <= set(figures) and figures["samples"] == 8
    how = figures["protocol"]["samples"]
    assert how["steps"] == 3 and how["count"] == 8 and how["seed"] == "picture i: 5 + i"
    assert how["guidance_scale"] == 2.0 and how["sampler"] == "dpmpp_2m" and how["conditions"] == "val"
    assert "first 40 pictures of train" in figures["protocol"]["reference"]


def test_an_evaluation_gives_the_same_figures_again_and_goes_on_where_it_stopped(unbroken_two, copy_of):
    run = copy_of(unbroken_two)
    call("evaluate", run, *SMALL, "--batch-size", 4)
    first = figures_of(run / "evaluation.json")
    (folder,) = (run / "evaluation").glob("samples-*")
    pictures = {name: (folder / name).read_bytes() for name in written(folder)}
    assert list(pictures) == [f"{i:05d}.png" for i in range(8)]
    (folder / "00006.png").unlink()
    old = (folder / "00001.png").stat().st_mtime_ns
    call("evaluate", run, *SMALL, "--batch-size", 4)
    assert {name: (folder / name).read_bytes() for name in written(folder)} == pictures
    assert (folder / "00001.png").stat().st_mtime_ns == old  # what was there is kept
    shutil.rmtree(run / "evaluation")
    call("evaluate", run, *SMALL, "--batch-size", 4)
    assert figures_of(run / "evaluation.json") == first
    call("evaluate", run, *SMALL, "--batch-size", 4, "--seed", 100)
    assert figures_of(run / "evaluation.json")["kid"] != first["kid"]


class Rank(World):
    """One of two ranks that are threads of this process: what they share meets in `meeting`."""

    meeting = threading.Barrier(2, timeout=120)
    shared: dict = {}

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        self.shared[self.rank] = x
        self.meeting.wait()
        total = self.shared[0] + self.shared[1]
        self.meeting.wait()
        return total

    def agree(self, asked: int) -> int:
        return int(self.sum(torch.tensor(asked)) > 0)

    def barrier(self) -> None:
        self.meeting.wait()

    def share(self, name: str, make, patience: float = 0) -> bytes:
        if self.is_main:
            self.shared[name] = make()
        self.meeting.wait()
        return self.shared[name]


def test_two_ranks_find_the_figures_of_one(unbroken_two, copy_of):
    words = [*map(str, SMALL), "--batch-size", "3"]
    found = {}

    def measured(name: str, world: World) -> None:
        subject = run.open_subject(str(runs[name]), world)
        options = sampling_options.evaluate_arguments([name, *words])
        parts = (run.reconstructions, run.prompted, run.samples)
        figures = [part(subject, options, world)[0] for part in parts]
        figures = {n: v for one in figures for n, v in one.items() if n not in CLOCKS}
        found[name, world.rank] = stage_two.finite(figures)

    runs = {name: copy_of(unbroken_two, name) for name in ("one", "two")}
    cpu = torch.device("cpu")
    with ThreadPoolExecutor(3) as pool:
        jobs = [("one", World(0, 1, cpu)), ("two", Rank(0, 2, cpu)), ("two", Rank(1, 2, cpu))]
        for job in [pool.submit(measured, *job) for job in jobs]:
            job.result()
    assert found["two", 0] == found["two", 1]
    for name, value in found["one", 0].items():
        if isinstance(value, (int, float)):
            assert found["two", 0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert [written(run / "evaluation") for run in runs.values()][0] == written(runs["two"] / "evaluation")


def test_captions_of_a_file_are_drawn_once_each(unbroken_two, copy_of, tmp_path):
    run = copy_of(unbroken_two)
    (tmp_path / "captions.txt").write_text("a red star\n\na blue ring\na green square\n")
    call("evaluate", run, *SMALL[2:], "--prompts-file", tmp_path / "captions.txt")
    figures = figures_of(run / "evaluation.json")
    assert figures["samples"] == 3 and figures["protocol"]["samples"]["conditions"].endswith("captions.txt")


def test_folders_of_pictures_are_compared_with_each_other_and_with_a_run(unbroken_two, copy_of, tmp_path):
    run = copy_of(unbroken_two)
    call("evaluate", run, *SMALL)
    (drawn,) = (run / "evaluation").glob("samples-*")
    call(
        "evaluate",
        "--samples",
        drawn,
        "--reference",
        drawn,
        "--features",
        "autoencoder",
        "--output",
        tmp_path / "f.json",
    )
    same = figures_of(tmp_path / "f.json")
    assert (
        same["fid"] == pytest.approx(0, abs=1e-4) and same["precision"] == same["recall"] == 1 and same["samples"] == 8
    )
    ours = figures_of(run / "evaluation.json")
    call("evaluate", run, *SMALL, "--samples", drawn)
    again = figures_of(run / "evaluation.json")
    assert again["fid"] == ours["fid"] and again["protocol"]["samples"] == str(drawn)


def test_a_single_held_out_picture_is_reconstructed_and_no_spread_is_told(runs):
    call(*STAGE_ONE, "train.steps=1", "data.val_count=1", "name=run")
    call("evaluate", runs / "run", "--features", "autoencoder")
    found = figures_of(runs / "run" / "evaluation.json")
    assert found["reconstructions"] == 1 and found["psnr"] > 0 and "rfid" not in found


def test_a_single_training_picture_is_no_set_to_compare_with(refused, runs):
    call(*STAGE_TWO, "train.steps=1", "data.count=1", "name=run")
    error = refused("evaluate", runs / "run", "--count", 2, "--prompts", 2, "--features", "autoencoder")
    assert "2 drawn and 1 real pictures" in error


def test_what_cannot_be_measured_is_refused(unbroken_one, unbroken_two, refused, tmp_path):
    out = ("--output", tmp_path / "figures.json")
    error = refused("evaluate", unbroken_one, *out, "--summary")
    assert "--summary is for text-to-image runs" in error
    assert not (unbroken_one / "summary.json").exists()
    assert "--reference" in refused("evaluate", *out)
    assert "--features nothing" in refused("evaluate", unbroken_one, *out, "--features", "nothing")
    assert "--count" in refused("evaluate", unbroken_one, *out, "--count", 1)
    assert "cannot be read" in refused("evaluate", unbroken_two, *out, *SMALL, "--prompts-file", tmp_path / "none.txt")
    assert "sampler" in refused("evaluate", unbroken_two, *out, *SMALL, "--sampler", "magic")
    assert "--clip" in refused("evaluate", unbroken_two, *out, *SMALL, "--clip", tmp_path)
