"""evaluate.py: metrics of both stages and of folders as JSON, equal for repeated runs and any number of ranks."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import STAGE_ONE, STAGE_TWO, call, files_in

from latentdiff.evaluation import options as evaluate_options
from latentdiff.evaluation import run, stage_two
from latentdiff.training.distributed import World

SMALL = ("--count", 8, "--prompts", 4, "--features", "autoencoder", "--no-report")
MEASURED = ("images_per_second", "peak_memory_mib")


def metrics_in(path) -> dict:
    """The metrics without measured times and memory."""
    metrics = json.loads(path.read_text())
    return {name: value for name, value in metrics.items() if name not in MEASURED}


def test_stage_one_is_evaluated_by_its_reconstructions_and_latents(stage_one_run, tmp_path, capsys):
    call("evaluate", stage_one_run, "--output", tmp_path / "metrics.json", *SMALL[4:])
    metrics = metrics_in(tmp_path / "metrics.json")
    assert metrics["step"] == 20 and metrics["reconstructions"] == 16 and 0 < metrics["psnr"] < 60
    names = "ssim rfid latent_std latent_noise_fraction equivariance_rotate90 equivariance_downsample"
    assert set(names.split()) <= set(metrics)
    assert metrics["latent_std"] == pytest.approx(1, abs=0.1)
    assert metrics["protocol"]["features"]["name"] == "the frozen autoencoder's encoder"
    assert "psnr" in capsys.readouterr().out
    assert not (stage_one_run / "evaluation.json").exists()


def test_stage_two_is_evaluated_by_its_samples_and_reports_the_protocol(stage_two_run, copy_run):
    run = copy_run(stage_two_run)
    call("evaluate", run, *SMALL, "--steps", 3, "--seed", 5)
    metrics = json.loads((run / "evaluation.json").read_text())
    assert 0 <= metrics["prompt_accuracy_low"] <= metrics["prompt_accuracy"] <= metrics["prompt_accuracy_high"] <= 1
    assert metrics["prompts"] == 4 and "prompt_accuracy_held_out" in metrics
    names = "fid kid kid_error precision recall nearest_neighbor_ratio copied_fraction fid_real"
    assert {*names.split(), *MEASURED} <= set(metrics) and metrics["samples"] == 8
    protocol = metrics["protocol"]["samples"]
    assert protocol["steps"] == 3 and protocol["count"] == 8 and protocol["seed"] == "image i: 5 + i"
    assert protocol["guidance_scale"] == 2.0 and protocol["sampler"] == "dpmpp_2m" and protocol["conditions"] == "val"
    assert "first 40 images of train" in metrics["protocol"]["reference"]


def test_a_repeated_evaluation_gives_equal_metrics_and_resumes_where_it_stopped(stage_two_run, copy_run):
    run = copy_run(stage_two_run)
    call("evaluate", run, *SMALL, "--batch-size", 4)
    first = metrics_in(run / "evaluation.json")
    (folder,) = (run / "evaluation").glob("samples-*")
    images = {name: (folder / name).read_bytes() for name in files_in(folder)}
    assert list(images) == [f"{i:05d}.png" for i in range(8)]
    (folder / "00006.png").unlink()
    mtime = (folder / "00001.png").stat().st_mtime_ns
    call("evaluate", run, *SMALL, "--batch-size", 4)
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == images
    assert (folder / "00001.png").stat().st_mtime_ns == mtime  # existing images are kept
    shutil.rmtree(run / "evaluation")
    call("evaluate", run, *SMALL, "--batch-size", 4)
    assert metrics_in(run / "evaluation.json") == first
    call("evaluate", run, *SMALL, "--batch-size", 4, "--seed", 100)
    assert metrics_in(run / "evaluation.json")["kid"] != first["kid"]


class Rank(World):
    """One of two ranks that are threads of this process and synchronize at a barrier."""

    threads = threading.Barrier(2, timeout=120)
    shared: dict = {}

    def all_reduce_sum(self, x: torch.Tensor) -> torch.Tensor:
        self.shared[self.rank] = x
        self.threads.wait()
        total = self.shared[0] + self.shared[1]
        self.threads.wait()
        return total

    def all_reduce_max(self, value: int) -> int:
        return int(self.all_reduce_sum(torch.tensor(value)) > 0)

    def barrier(self) -> None:
        self.threads.wait()

    def broadcast_bytes(self, name: str, make, timeout: float = 0) -> bytes:
        if self.is_main:
            self.shared[name] = make()
        self.threads.wait()
        return self.shared[name]


def test_two_ranks_give_the_metrics_of_one(stage_two_run, copy_run):
    argv = [*map(str, SMALL), "--batch-size", "3"]
    results = {}

    def evaluate(name: str, world: World) -> None:
        eval_run = run.open_run(str(runs[name]), world)
        options = evaluate_options.evaluate_arguments([name, *argv])
        parts = (run.reconstruction_metrics, run.prompt_metrics, run.sample_metrics)
        metrics = [part(eval_run, options, world)[0] for part in parts]
        metrics = {n: v for part_metrics in metrics for n, v in part_metrics.items() if n not in MEASURED}
        results[name, world.rank] = stage_two.finite(metrics)

    runs = {name: copy_run(stage_two_run, name) for name in ("one", "two")}
    cpu = torch.device("cpu")
    with ThreadPoolExecutor(3) as pool:
        jobs = [("one", World(0, 1, cpu)), ("two", Rank(0, 2, cpu)), ("two", Rank(1, 2, cpu))]
        for job in [pool.submit(evaluate, *job) for job in jobs]:
            job.result()
    assert results["two", 0] == results["two", 1]
    for name, value in results["one", 0].items():
        if isinstance(value, (int, float)):
            assert results["two", 0][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert [files_in(run / "evaluation") for run in runs.values()][0] == files_in(runs["two"] / "evaluation")


def test_each_caption_of_a_file_is_sampled_once(stage_two_run, copy_run, tmp_path):
    run = copy_run(stage_two_run)
    (tmp_path / "captions.txt").write_text("a red star\n\na blue ring\na green square\n")
    call("evaluate", run, *SMALL[2:], "--prompts-file", tmp_path / "captions.txt")
    metrics = metrics_in(run / "evaluation.json")
    assert metrics["samples"] == 3 and metrics["protocol"]["samples"]["conditions"].endswith("captions.txt")


def test_folders_of_images_are_compared_with_each_other_and_with_the_data_of_a_run(stage_two_run, copy_run, tmp_path):
    run = copy_run(stage_two_run)
    call("evaluate", run, *SMALL)
    (samples,) = (run / "evaluation").glob("samples-*")
    output = tmp_path / "f.json"
    call("evaluate", "--samples", samples, "--reference", samples, "--features", "autoencoder", "--output", output)
    same = metrics_in(output)
    assert (
        same["fid"] == pytest.approx(0, abs=1e-4) and same["precision"] == same["recall"] == 1 and same["samples"] == 8
    )
    first = metrics_in(run / "evaluation.json")
    call("evaluate", run, *SMALL, "--samples", samples)
    again = metrics_in(run / "evaluation.json")
    assert again["fid"] == first["fid"] and again["protocol"]["samples"] == str(samples)


def test_a_single_validation_image_is_reconstructed_without_distribution_metrics(runs):
    call(*STAGE_ONE, "train.steps=1", "data.val_count=1", "name=run")
    call("evaluate", runs / "run", "--features", "autoencoder")
    metrics = metrics_in(runs / "run" / "evaluation.json")
    assert metrics["reconstructions"] == 1 and metrics["psnr"] > 0 and "rfid" not in metrics


def test_a_single_training_image_is_refused_as_a_reference(refused, runs):
    call(*STAGE_TWO, "train.steps=1", "data.count=1", "name=run")
    error = refused("evaluate", runs / "run", "--count", 2, "--prompts", 2, "--features", "autoencoder")
    assert "2 generated and 1 real images" in error


def test_impossible_evaluations_are_refused(stage_one_run, stage_two_run, refused, tmp_path):
    out = ("--output", tmp_path / "metrics.json")
    error = refused("evaluate", stage_one_run, *out, "--summary")
    assert "--summary is for text-to-image runs" in error
    assert not (stage_one_run / "summary.json").exists()
    assert "--reference" in refused("evaluate", *out)
    assert "--features nothing" in refused("evaluate", stage_one_run, *out, "--features", "nothing")
    assert "--count" in refused("evaluate", stage_one_run, *out, "--count", 1)
    assert "cannot be read" in refused("evaluate", stage_two_run, *out, *SMALL, "--prompts-file", tmp_path / "none.txt")
    assert "sampler" in refused("evaluate", stage_two_run, *out, *SMALL, "--sampler", "magic")
    assert "--clip" in refused("evaluate", stage_two_run, *out, *SMALL, "--clip", tmp_path)
