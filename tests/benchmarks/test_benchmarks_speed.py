"""The speed benchmark: implementations compute the same, alternate, and the page is generated from their results."""

import math

import pytest
import torch

from benchmarks.speed import (
    autoencoder,
    data,
    diffusers_examples,
    interleave,
    machine,
    networks,
    page,
    sampling,
    scaling,
    startup,
    training,
    training_loops,
)
from benchmarks.speed.__main__ import BENCHMARKS
from benchmarks.speed.benchmark import Benchmark, Measurement, Target
from latentdiff.autoencoder import loss, perceptual
from latentdiff.config import UserError


class Finished(Exception):
    pass


class Recorder:
    """The `record` argument of an implementation, which ends it after some repeats."""

    remaining, resident = 0, 0.0

    def __init__(self, repeats: int) -> None:
        self.repeats, self.values = repeats, []

    def reset_memory(self) -> None:
        pass

    def begin(self) -> None:
        pass

    def __call__(self, **values) -> None:
        self.values.append(values)
        if len(self.values) == self.repeats:
            raise Finished


def run(implementation, repeats: int = 1, /, **options) -> list[dict]:
    record = Recorder(repeats)
    with pytest.raises(Finished):
        implementation(record, **options)
    return record.values


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers", reason="the other implementation is diffusers")


# ---- implementations


def test_both_training_steps_have_the_same_losses(diffusers):
    results = [run(function, 3, size="tiny") for function in (training.run_latentdiff, training.run_diffusers)]
    losses = [[repeat["loss"] for repeat in result] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4) and losses[0][2] < losses[0][0]


def test_the_flops_of_a_step_are_counted(monkeypatch):
    monkeypatch.setattr(machine, "matmul_flops_per_second", lambda side: side * 1.0)
    (values,) = run(training.run_matmul, size="tiny")
    assert values["flops"] > 3e6 and values["flops_per_second"] >= 2048


def test_both_pipelines_generate_the_same_images(diffusers):
    options = {"size": "tiny", "batch": 2, "steps": 2}
    (a,), (b,) = (run(function, **options) for function in (sampling.run_latentdiff, sampling.run_diffusers))
    differences = [abs(x - y) for x, y in zip(a["image"], b["image"], strict=True)]
    assert max(differences) <= 1 and len(set(a["image"])) > 5


@pytest.mark.parametrize("mode", ["encode", "encode, exact", "decode", "exact"])
def test_both_autoencoders_have_the_same_output(diffusers, mode):
    options = {"mode": mode, "pixels": 64, "width": 1 / 16}
    (a,), (b,) = (run(function, **options) for function in (autoencoder.run_latentdiff, autoencoder.run_diffusers))
    assert a["value"] == pytest.approx(b["value"], abs=1e-4)


def test_blended_tiles_run(diffusers):
    for function, mode in (
        (autoencoder.run_latentdiff, "blended"),
        (autoencoder.run_diffusers, "blended"),
        (autoencoder.run_diffusers, "encode, blended"),
    ):
        (values,) = run(function, mode=mode, pixels=64, width=1 / 16)
        assert all(map(math.isfinite, values["value"]))


@pytest.mark.parametrize("functions, loss", [
    ((training_loops.run_latentdiff_text, diffusers_examples.text_to_image), "loss"),
    ((training_loops.run_latentdiff_autoencoder, diffusers_examples.autoencoder), "nll"),
], ids=["text", "autoencoder"])  # fmt: skip
def test_the_training_loops_train_on_the_same_images(diffusers, monkeypatch, tmp_path, functions, loss):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path))
    first = [run(function, 2, size="tiny")[0][loss] for function in functions]
    assert first[0] == pytest.approx(first[1], rel=0.5)  # noise and order differ


def test_the_loss_of_the_autoencoder_example_is_that_of_latentdiff():
    x, y = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    config = loss.LossConfig(perceptual=perceptual.MultiScaleConfig(weight=0.7))
    distance = perceptual.build(config.perceptual)
    nll = loss.reconstruction_loss(config, x, y, distance, "sum")["nll"]
    assert diffusers_examples.generator_nll(y, x, distance, 0.7).item() == pytest.approx(nll.item(), rel=1e-5)


def test_both_text_encoders_have_the_same_output(diffusers):
    _, pipeline = sampling.build_pipeline("tiny")
    condition, fields = pipeline.conditioner.parts[0], pipeline.prepare({"caption": [sampling.PROMPT]})
    bert = diffusers_examples.bert(condition, sampling.sizes()["tiny"].text, pipeline.tokenizer.pad_id)
    context = condition(fields, torch.zeros(1, dtype=torch.bool)).context
    assert torch.allclose(bert(fields["tokens"])[0], context, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "tar", "diffusers"])
def test_images_are_loaded(kind):
    (values,) = run(data.load_images, kind=kind, count=4, pixels=16, batch=2)
    assert values == {"images": 4}


def test_latents_of_the_same_step_are_the_same_after_a_resume(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path))
    options = {"count": 8, "batches": 1}
    z = [run(data.load_latents, 2, first=first, **options)[1]["z"] for first in (10**6, 10**6, 0)]
    assert z[0] == z[1] != z[2]


def test_a_sparse_cache_opens_and_its_entries_are_read():
    (values,) = run(data.open_cache, entries=20_000)
    assert values["open_seconds"] > 0


def test_every_case_of_scaling_runs():
    for cases in scaling.CASES.values():
        _, smallest = min(cases.items(), key=lambda case: math.prod(case[1].get("latent", (1,))))
        changes = smallest | {"batch": 2, "latent": (4, 4, 4)} | ({"context": (5, 8)} if "context" in smallest else {})
        assert run(training.run_latentdiff, size="tiny", **changes)[0]["images"] == 2


def test_gpu_benchmarks_have_networks():
    for size in ("cin256", "txt2img"):
        with torch.device("meta"):
            unet = networks.latentdiff_unet(networks.sizes()[size])
        assert sum(p.numel() for p in unet.parameters()) > 3.9e8


# ---- alternating


def repeats(*seconds: float) -> list[dict]:
    return [{"seconds": s, "memory": 10 * s, "images": 2} for s in seconds]


def test_ratios_are_of_pairs():
    ratio = interleave.ratio(repeats(4, 40, 8), repeats(2, 20, 2))
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 3)
    assert interleave.ratio(repeats(4), repeats(2), "memory").value == 2


@pytest.mark.slow
def test_implementations_alternate_in_separate_processes():
    implementation = interleave.Implementation("training:run_latentdiff", {"size": "tiny"})
    results = interleave.interleave({"a": implementation, "b": implementation}, 3)
    assert [len(results[name]) for name in "ab"] == [3, 3]
    assert [repeat["loss"] for repeat in results["a"]] == [repeat["loss"] for repeat in results["b"]]
    assert all(repeat["seconds"] > 0 and repeat["memory"] > 0 for repeat in results["a"])


@pytest.mark.slow
def test_two_ranks_are_one_implementation():
    options = {"size": "tiny", "count": 2, "batch": 1}
    implementation = interleave.Implementation("scaling:run_ranks", options, {"OMP_NUM_THREADS": "1"})
    result = interleave.interleave({"two": implementation}, 2)["two"]
    assert result[1]["loss"] < result[0]["loss"]


@pytest.mark.slow
def test_an_implementation_that_fails_is_named_with_its_reason():
    with pytest.raises(UserError, match="(?s)training:run_latentdiff.*KeyError: 'none'"):
        interleave.interleave({"a": interleave.Implementation("training:run_latentdiff", {"size": "none"})}, 1)


def test_a_process_that_fails_has_no_time():
    assert startup.seconds_of(("-c", "pass")) > 0
    with pytest.raises(UserError, match="exited with code 3"):
        startup.seconds_of(("-c", "raise SystemExit(3)"))


# ---- the page


BENCHMARK = Benchmark("x", "", lambda repeats: [], {"fast": Target(1.5, 2.0), "small": Target(0.5, 0.5, "<=")})
MEASUREMENTS = [
    Measurement("fast", 1.6, 1.5, 1.7, "x"),
    Measurement("small", 0.6, 0.6, 0.6, "x"),
    Measurement("more", 12345.0, 1.0, 2e4, "MB", "why"),
]


def test_a_table_line_shows_whether_the_target_is_met(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "speed.json")
    page.add("x", MEASUREMENTS, 3, "cpu", {"cores": 2})
    on_cpu = page.table([BENCHMARK], page.read(), "cpu")[2:]
    assert on_cpu == [
        "| x | fast | 1.60x (1.50 to 1.70) | >= 1.5 | yes |",
        "| x | small | 0.600x | <= 0.5 | **no** |",
        "| x | more | 12,340 MB (1.00 to 20,000), why |  |  |",
    ]
    assert page.table([BENCHMARK], page.read(), "cuda")[2] == "| x | fast | not measured | >= 2 |  |"


def test_single_benchmarks_are_merged_and_another_machine_replaces_them(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "speed.json")
    for name, facts in (("a", {"cores": 2}), ("b", {"cores": 2}), ("a", {"cores": 2})):
        page.add(name, MEASUREMENTS, 3, "cpu", facts)
    page.add("a", MEASUREMENTS, 3, "cuda", {"cores": 8})
    assert set(page.read()["cpu"]["benchmarks"]) == {"a", "b"} and set(page.read()) == {"cpu", "cuda"}
    page.add("a", MEASUREMENTS, 3, "cpu", {"cores": 4})
    assert set(page.read()["cpu"]["benchmarks"]) == {"a"}


def test_the_page_is_generated_from_the_results():
    assert page.PAGE.read_text() == page.page(BENCHMARKS.values(), page.read(), page.read_demo())


def test_the_page_shows_the_demo_beside_the_earlier_one_if_it_was_measured():
    demo = {"psnr": 35.72, "prompt_accuracy": 0.676, "seconds": 300.0, "steps": [5000, 4000]}
    text = page.page([], {}, {"before": demo, "today": demo | {"seconds": 100.0}})
    assert "| `a559c5c` | 5,000 and 4,000 | 35.7 dB | 0.676 | 3.00x |" in text
    assert "today's" not in page.page([], {}, {})


def test_cpu_results_are_ratios():
    """Seconds and images per second depend on the machine; only a target may be in seconds."""
    for name, result in page.read().get("cpu", {}).get("benchmarks", {}).items():
        for measurement in result["measurements"]:
            assert measurement["unit"] in ("x", "%", "MB", "epochs") or measurement["name"] in BENCHMARKS[name].targets
