"""The speed benchmark: contestants compute the same thing, take turns, and leave a page that is made of their JSON."""

import math

import pytest
import torch

from benchmarks.speed import (
    coding,
    data,
    examples,
    growth,
    machine,
    networks,
    page,
    race,
    sampling,
    shipped,
    starting,
    training,
)
from benchmarks.speed.__main__ import WORKS
from benchmarks.speed.work import Bar, Row, Work
from latentdiff.autoencoder import loss, perceptual
from latentdiff.config import UserError


class Over(Exception):
    pass


class Done:
    """What a contestant is given here: after some turns it is sent home."""

    left, resident = 0, 0.0

    def __init__(self, turns: int) -> None:
        self.turns, self.said = turns, []

    def settled(self) -> None:
        pass

    def begin(self) -> None:
        pass

    def __call__(self, **facts) -> None:
        self.said.append(facts)
        if len(self.said) == self.turns:
            raise Over


def turns(contestant, n: int = 1, /, **options) -> list[dict]:
    done = Done(n)
    with pytest.raises(Over):
        contestant(done, **options)
    return done.said


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers", reason="the other contestant is diffusers")


# ---- contestants


def test_both_training_steps_have_the_same_losses(diffusers):
    ours, theirs = (turns(one, 3, size="tiny") for one in (training.ours, training.theirs))
    losses = [[turn["loss"] for turn in said] for said in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-4) and losses[0][2] < losses[0][0]


def test_the_share_of_the_peak_counts_the_flops_of_a_step(monkeypatch):
    monkeypatch.setattr(machine, "matrix_rate", lambda side: side * 1.0)
    (said,) = turns(training.limit, size="tiny")
    assert said["flops"] > 3e6 and said["rate"] >= 2048


def test_both_draw_the_same_pictures(diffusers):
    told = {"model": "tiny", "batch": 2, "steps": 2}
    (ours,), (theirs,) = (turns(one, **told) for one in (sampling.ours, sampling.theirs))
    apart = [abs(a - b) for a, b in zip(ours["picture"], theirs["picture"], strict=True)]
    assert max(apart) <= 1 and len(set(ours["picture"])) > 5


@pytest.mark.parametrize("how", ["encode", "encode, exact", "decode", "exact"])
def test_both_autoencoders_give_the_same(diffusers, how):
    told = {"how": how, "pixels": 64, "width": 1 / 16}
    (ours,), (theirs,) = (turns(one, **told) for one in (coding.ours, coding.theirs))
    assert ours["value"] == pytest.approx(theirs["value"], abs=1e-4)


def test_tiles_that_are_blended_run(diffusers):
    for one, how in ((coding.ours, "blended"), (coding.theirs, "blended"), (coding.theirs, "encode, blended")):
        (said,) = turns(one, how=how, pixels=64, width=1 / 16)
        assert all(map(math.isfinite, said["value"]))


@pytest.mark.parametrize("ours, theirs, figure", [
    (shipped.ours_text, examples.text_to_image, "loss"), (shipped.ours_autoencoder, examples.autoencoder, "nll"),
], ids=["text", "autoencoder"])  # fmt: skip
def test_the_loops_as_shipped_train_on_the_same_pictures(diffusers, monkeypatch, tmp_path, ours, theirs, figure):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path))
    first = [turns(one, 2, size="tiny")[0][figure] for one in (ours, theirs)]
    assert first[0] == pytest.approx(first[1], rel=0.5)  # their noise and order are their own


def test_the_loss_of_the_autoencoder_example_is_ours():
    x, y = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    config = loss.LossConfig(perceptual=perceptual.MultiScaleConfig(weight=0.7))
    distance = perceptual.build(config.perceptual)
    ours = loss.reconstruction_loss(config, x, y, distance, "sum")["nll"]
    assert examples.generator_nll(y, x, distance, 0.7).item() == pytest.approx(ours.item(), rel=1e-5)


def test_their_text_encoder_is_ours(diffusers):
    _, model = sampling.build("tiny")
    part, tokens = model.conditioner.parts[0], model.tokens([sampling.PROMPT])
    theirs = examples.bert(part, sampling.models()["tiny"].text, model.tokenizer.pad_id)
    told = part(tokens, torch.zeros(1, dtype=torch.bool)).context
    assert torch.allclose(theirs(tokens["tokens"])[0], told, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "tars", "theirs"])
def test_pictures_are_read(kind):
    (said,) = turns(data.pictures, kind=kind, count=4, pixels=16, batch=2)
    assert said == {"images": 4}


def test_latents_of_the_same_step_are_the_same_after_a_resume(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path))
    told = {"count": 8, "batches": 1}
    again = [turns(data.latents, 2, first=first, **told)[1]["z"] for first in (10**6, 10**6, 0)]
    assert again[0] == again[1] != again[2]


def test_a_cache_of_holes_opens_and_its_rows_are_read():
    (said,) = turns(data.opening, rows=20_000)
    assert said["opening"] > 0


def test_every_case_of_growth_runs():
    for cases in growth.CASES.values():
        _, smallest = min(cases.items(), key=lambda case: math.prod(case[1].get("latent", (1,))))
        changes = smallest | {"batch": 2, "latent": (4, 4, 4)} | ({"context": (5, 8)} if "context" in smallest else {})
        assert turns(training.ours, size="tiny", **changes)[0]["images"] == 2


def test_works_of_a_gpu_have_networks():
    for size in ("cin256", "txt2img"):
        with torch.device("meta"):
            unet = networks.ours(networks.sizes()[size])
        assert sum(p.numel() for p in unet.parameters()) > 3.9e8


# ---- taking turns


def spans(*seconds: float) -> list[dict]:
    return [{"seconds": s, "memory": 10 * s, "images": 2} for s in seconds]


def test_ratios_are_of_pairs():
    found = race.ratio(spans(4, 40, 8), spans(2, 20, 2))
    assert (found.value, found.low, found.high) == (2, 2, 3)
    assert race.ratio(spans(4), spans(2), "memory").value == 2


@pytest.mark.slow
def test_contestants_take_turns_in_processes_of_their_own():
    told = race.Contestant("training:ours", {"size": "tiny"})
    found = race.race({"a": told, "b": told}, 3)
    assert [len(found[name]) for name in "ab"] == [3, 3]
    assert [turn["loss"] for turn in found["a"]] == [turn["loss"] for turn in found["b"]]
    assert all(turn["seconds"] > 0 and turn["memory"] > 0 for turn in found["a"])


@pytest.mark.slow
def test_two_ranks_are_one_contestant():
    told = {"size": "tiny", "count": 2, "batch": 1}
    found = race.race({"two": race.Contestant("growth:ranks", told, {"OMP_NUM_THREADS": "1"})}, 2)
    assert found["two"][1]["loss"] < found["two"][0]["loss"]


@pytest.mark.slow
def test_a_contestant_that_fails_is_named_with_its_reason():
    with pytest.raises(UserError, match="(?s)training:ours.*KeyError: 'none'"):
        race.race({"a": race.Contestant("training:ours", {"size": "none"})}, 1)


def test_a_process_that_fails_has_no_time():
    assert starting.took(("-c", "pass")) > 0
    with pytest.raises(UserError, match="ended with 3"):
        starting.took(("-c", "raise SystemExit(3)"))


# ---- the page


WORK = Work("x", "says", lambda share: [], {"fast": Bar(1.5, 2.0), "small": Bar(0.5, 0.5, "<=")})
ROWS = [Row("fast", 1.6, 1.5, 1.7, "x"), Row("small", 0.6, 0.6, 0.6, "x"), Row("more", 12345.0, 1.0, 2e4, "MB", "why")]


def test_a_row_says_whether_its_bar_is_met(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "speed.json")
    page.keep("x", ROWS, 3, "cpu", {"cores": 2})
    on_cpu = page.table([WORK], page.read(), "cpu")[2:]
    assert on_cpu == [
        "| x | fast | 1.60x (1.50 to 1.70) | >= 1.5 | yes |",
        "| x | small | 0.600x | <= 0.5 | **no** |",
        "| x | more | 12,340 MB (1.00 to 20,000), why |  |  |",
    ]
    assert page.table([WORK], page.read(), "cuda")[2] == "| x | fast | not measured | >= 2 |  |"


def test_single_works_are_merged_and_another_machine_starts_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "speed.json")
    for name, facts in (("a", {"cores": 2}), ("b", {"cores": 2}), ("a", {"cores": 2})):
        page.keep(name, ROWS, 3, "cpu", facts)
    page.keep("a", ROWS, 3, "cuda", {"cores": 8})
    assert set(page.read()["cpu"]["works"]) == {"a", "b"} and set(page.read()) == {"cpu", "cuda"}
    page.keep("a", ROWS, 3, "cpu", {"cores": 4})
    assert set(page.read()["cpu"]["works"]) == {"a"}


def test_the_page_is_made_of_the_results_alone():
    assert page.PAGE.read_text() == page.page(WORKS.values(), page.read(), page.demo())


def test_the_page_shows_the_demo_beside_the_earlier_one_where_it_was_measured():
    one = {"psnr": 35.72, "prompt_accuracy": 0.676, "seconds": 300.0, "steps": [5000, 4000]}
    found = page.page([], {}, {"before": one, "today": one | {"seconds": 100.0}})
    assert "| `a559c5c` | 5,000 and 4,000 | 35.7 dB | 0.676 | 3.00x |" in found
    assert "today's" not in page.page([], {}, {})


def test_what_is_measured_on_cpus_are_ratios():
    """Seconds and pictures per second would tell of the machine; but a bar may be in them."""
    for name, found in page.read().get("cpu", {}).get("works", {}).items():
        for row in found["rows"]:
            assert row["unit"] in ("x", "%", "MB", "epochs") or row["what"] in WORKS[name].bars
