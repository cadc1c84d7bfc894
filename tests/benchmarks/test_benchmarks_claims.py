"""The page of claims matches the committed results, and a verdict matches its intervals."""

import json
import math
import xml.dom.minidom

import pytest
import torch

from benchmarks.claims import arms, charts, claim, models, pages
from benchmarks.claims.__main__ import CLAIMS, to_json
from benchmarks.claims.claim import Chart, Effect, Result, Series
from latentdiff.evaluation import distances


def test_docs_claims_is_generated_from_the_committed_results():
    """`python -m benchmarks claims --page` writes it again."""
    files = pages.page(pages.read())
    for name, content in files.items():
        assert (pages.DOCS / name).read_text() == content, f"docs/{name} does not match the results"
    assert {f"claims/{p.name}" for p in (pages.DOCS / "claims").glob("*")} == set(files) - {"claims.md"}


@pytest.mark.parametrize("path", sorted(claim.results_dir().glob("*.json")), ids=lambda path: path.stem)
def test_every_result_has_the_verdict_of_its_effects(path):
    result = json.loads(path.read_text())
    assert result["name"] == path.stem and path.stem in CLAIMS and result["charts"]
    ends = [{**e, "low": -math.inf if e["low"] is None else e["low"]} for e in result["effects"]]
    ends = [{**e, "high": math.inf if e["high"] is None else e["high"]} for e in ends]
    effects = [Effect(*(e[name] for name in ("name", "expected", "value", "low", "high"))) for e in ends]
    assert [e.verdict for e in effects] == [e["verdict"] for e in result["effects"]]
    assert Result("", "", effects, []).verdict == result["verdict"]


def test_a_verdict_depends_on_the_side_of_the_interval():
    def verdict(expected: str, low: float, high: float) -> str:
        return Effect("", expected, (low + high) / 2, low, high).verdict

    assert verdict("> 0", 0.1, 0.2) == verdict("< 1", 0.1, 0.2) == "holds"
    assert verdict("> 0", -0.1, 0.2) == verdict("< 0.1", -0.1, 0.2) == "inconclusive"
    assert verdict("> 0", -0.2, -0.1) == verdict("< 0", 0.1, 0.2) == "contradicted"
    assert verdict("> 0", -math.inf, math.inf) == "inconclusive"  # a single seed
    good, none, bad = (Effect("", "> 0", 0, low, low + 1) for low in (0.5, -0.5, -1.5))
    assert Result("", "", [good, none], []).verdict == "inconclusive"
    assert Result("", "", [good, none, bad], []).verdict == "contradicted"


def test_intervals_have_their_coverage():
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(200):
        x = torch.randn(50, generator=generator, dtype=torch.float64)
        _, low, high = claim.bootstrap(lambda w, x=x: ((w * x).sum() / w.sum()).item(), 50, 100)
        inside += low < 0 < high
    assert 0.88 < inside / 200 <= 0.99
    mean, low, high = claim.paired_t([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(4.303 / math.sqrt(3)) and low == pytest.approx(4 - high)
    assert claim.paired_t([1.0]) == (1.0, -math.inf, math.inf)


def test_kid_with_equal_weights_is_kid_and_an_image_with_weight_zero_is_left_out():
    generator = torch.Generator().manual_seed(0)
    samples, real = torch.randn(30, 5, generator=generator), torch.randn(40, 5, generator=generator)
    kernel, weights = arms.Kernel(samples, real), torch.ones(30, dtype=torch.float64)
    assert kernel(weights) == pytest.approx(distances.kid(samples, real), rel=1e-9)
    weights[:4] = 0
    assert kernel(weights) == pytest.approx(distances.kid(samples[4:], real), rel=1e-9)


def test_coverage_is_precision():
    generator = torch.Generator().manual_seed(0)
    samples, real = torch.randn(60, 3, generator=generator) + 1, torch.randn(80, 3, generator=generator)
    precision, recall = distances.precision_recall(samples, real)
    assert arms.covered(samples, real).mean().item() == pytest.approx(precision)
    assert arms.covered(real, samples).mean().item() == pytest.approx(recall)


def test_the_bits_of_a_gaussian_are_its_mutual_information():
    """A normal number is predicted with error 1 / (1 + SNR); encoding it takes log2(1 + SNR) / 2 bits, the minimum."""
    snr, numbers = torch.linspace(-8, 8, 2000).double().exp(), 12
    squares = (numbers / (1 + snr)).expand(3, -1)
    bits = models.rate_bound(squares, torch.full((3,), float(numbers)).double(), snr)
    exact = numbers / 2 * torch.log2(1 + snr)
    assert (bits >= exact).all() and torch.allclose(bits, exact.expand(3, -1), rtol=0.01)
    worse = models.rate_bound(2 * squares, 2 * bits[:, 0], snr)  # larger errors need more bits
    assert (worse[:, -1] > 1.9 * exact[-1]).all()


def test_charts_are_well_formed_also_with_unknown_ends_of_intervals():
    lines = Chart("steps & more", "KID", [Series("a", [1, 10], [0.5, 0.1], [0.4, None], [0.6, None])], log=True)
    bars = Chart("", "PSNR", [Series("a", ["f2", "f4"], [30.0, 20.0], [29.0, 19.0], [31.0, 21.0])])
    for chart in (lines, bars):
        xml.dom.minidom.parseString(charts.svg(chart))
    example = claim.Claim("x", "statement", "source", lambda setting: None, 1)
    result = Result("data", "protocol", [Effect("e", "> 0", 1.0, -math.inf, math.inf)], [lines, bars])
    written = json.loads(json.dumps(to_json(example, result), allow_nan=False))
    page = pages.page([written])
    assert "(unknown to unknown)" in page["claims.md"] and set(page) == {
        "claims.md",
        "claims/x-0.svg",
        "claims/x-1.svg",
    }
