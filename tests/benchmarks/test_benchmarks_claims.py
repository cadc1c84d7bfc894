"""The page of claims is what the committed results say, and a verdict is what its intervals say."""

import json
import math
import xml.dom.minidom

import pytest
import torch

from benchmarks.claims import arms, charts, claim, models, pages
from benchmarks.claims.__main__ import CLAIMS, to_json
from benchmarks.claims.claim import Chart, Effect, Result, Series
from latentdiff.evaluation import distances


def test_docs_claims_is_made_from_the_committed_results():
    """`python -m benchmarks claims --page` writes it anew."""
    wanted = pages.page(pages.read())
    for name, content in wanted.items():
        assert (pages.DOCS / name).read_text() == content, f"docs/{name} is not what the results say"
    assert {f"claims/{p.name}" for p in (pages.DOCS / "claims").glob("*")} == set(wanted) - {"claims.md"}


@pytest.mark.parametrize("path", sorted(claim.results().glob("*.json")), ids=lambda path: path.stem)
def test_every_result_has_the_verdict_of_its_effects(path):
    one = json.loads(path.read_text())
    assert one["name"] == path.stem and path.stem in CLAIMS and one["charts"]
    ends = [{**e, "low": -math.inf if e["low"] is None else e["low"]} for e in one["effects"]]
    ends = [{**e, "high": math.inf if e["high"] is None else e["high"]} for e in ends]
    effects = [Effect(*(e[name] for name in ("what", "expect", "value", "low", "high"))) for e in ends]
    assert [e.verdict for e in effects] == [e["verdict"] for e in one["effects"]]
    assert Result("", "", effects, []).verdict == one["verdict"]


def test_a_verdict_is_where_the_interval_lies():
    def verdict(expect: str, low: float, high: float) -> str:
        return Effect("", expect, (low + high) / 2, low, high).verdict

    assert verdict("> 0", 0.1, 0.2) == verdict("< 1", 0.1, 0.2) == "holds"
    assert verdict("> 0", -0.1, 0.2) == verdict("< 0.1", -0.1, 0.2) == "not seen"
    assert verdict("> 0", -0.2, -0.1) == verdict("< 0", 0.1, 0.2) == "contrary"
    assert verdict("> 0", -math.inf, math.inf) == "not seen"  # one seed shows nothing
    good, none, bad = (Effect("", "> 0", 0, low, low + 1) for low in (0.5, -0.5, -1.5))
    assert Result("", "", [good, none], []).verdict == "not seen"
    assert Result("", "", [good, none, bad], []).verdict == "contrary"


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


def test_kid_of_equal_weights_is_kid_and_a_left_out_picture_is_left_out():
    generator = torch.Generator().manual_seed(0)
    drawn, real = torch.randn(30, 5, generator=generator), torch.randn(40, 5, generator=generator)
    kernel, weights = arms.Kernel(drawn, real), torch.ones(30, dtype=torch.float64)
    assert kernel(weights) == pytest.approx(distances.kid(drawn, real), rel=1e-9)
    weights[:4] = 0
    assert kernel(weights) == pytest.approx(distances.kid(drawn[4:], real), rel=1e-9)


def test_coverage_is_precision():
    generator = torch.Generator().manual_seed(0)
    drawn, real = torch.randn(60, 3, generator=generator) + 1, torch.randn(80, 3, generator=generator)
    precision, recall = distances.precision_recall(drawn, real)
    assert arms.covered(drawn, real).mean().item() == pytest.approx(precision)
    assert arms.covered(real, drawn).mean().item() == pytest.approx(recall)


def test_the_bits_of_a_gaussian_are_its_mutual_information():
    """A normal number is guessed with error 1 / (1 + SNR): telling it costs log2(1 + SNR) / 2 bits, no less."""
    snr, numbers = torch.linspace(-8, 8, 2000).double().exp(), 12
    squares = (numbers / (1 + snr)).expand(3, -1)
    bits = models.bound(squares, torch.full((3,), float(numbers)).double(), snr)
    exact = numbers / 2 * torch.log2(1 + snr)
    assert (bits >= exact).all() and torch.allclose(bits, exact.expand(3, -1), rtol=0.01)
    assert (
        models.bound(2 * squares, 2 * bits[:, 0], snr)[:, -1] > 1.9 * exact[-1]
    ).all()  # who guesses worse pays more


def test_charts_are_well_formed_and_unknown_ends_are_no_obstacle():
    lines = Chart("steps & more", "KID", [Series("a", [1, 10], [0.5, 0.1], [0.4, None], [0.6, None])], log=True)
    bars = Chart("", "PSNR", [Series("a", ["f2", "f4"], [30.0, 20.0], [29.0, 19.0], [31.0, 21.0])])
    for chart in (lines, bars):
        xml.dom.minidom.parseString(charts.svg(chart))
    one = claim.Claim("x", "says", "where", lambda setting: None, 1)
    result = Result("data", "protocol", [Effect("e", "> 0", 1.0, -math.inf, math.inf)], [lines, bars])
    written = json.loads(json.dumps(to_json(one, result), allow_nan=False))
    page = pages.page([written])
    assert "(unknown to unknown)" in page["claims.md"] and set(page) == {
        "claims.md",
        "claims/x-0.svg",
        "claims/x-1.svg",
    }
