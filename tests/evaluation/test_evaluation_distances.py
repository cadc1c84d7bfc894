"""Distances between sets of features: closed forms on Gaussians, and torch-fidelity on the same features."""

import math

import pytest
import torch

from latentdiff.evaluation import distances


def gaussian(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def sets():
    mix = gaussian(24, 24, 9) / 5 + torch.eye(24)
    return gaussian(400, 24, 0).float(), (gaussian(320, 24, 1, shift=0.2, scale=1.1) @ mix).float()


def test_the_frechet_distance_of_gaussians_is_its_closed_form():
    """|m - m'|² + tr(C + C' - 2 (C C')^½): for commuting covariances the squared differences of the deviations."""
    m, n = torch.tensor([1.0, 2.0]).double(), torch.tensor([4.0, -2.0]).double()
    a, b = torch.tensor([4.0, 9.0]).double().diag(), torch.tensor([1.0, 25.0]).double().diag()
    assert distances.frechet_distance(m, a, n, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)
    turn = torch.linalg.qr(gaussian(2, 2, 3)).Q
    assert distances.frechet_distance(m, turn @ a @ turn.T, m, turn @ b @ turn.T) == pytest.approx(5)
    assert distances.frechet_distance(m, a, m, a) == pytest.approx(0, abs=1e-9)


def test_fid_of_samples_goes_to_the_closed_form():
    a, b = gaussian(20000, 4, 0), gaussian(20000, 4, 1, shift=1.0, scale=2.0)
    assert distances.fid(a, b) == pytest.approx(4 * (1 + 1), rel=0.03)
    assert distances.fid(a, gaussian(20000, 4, 2)) < 0.01


def test_kid_is_unbiased_and_goes_to_the_closed_form():
    """Of N(0, 1) and N(m, 1) in one dimension: E[(xy + 1)^3] = 1 + 3 E[xy] + 3 E[x²]E[y²] + E[x³]E[y³]."""
    m = 0.5
    moments = [(0.0, 1.0, 0.0), (m, 1 + m * m, m**3 + 3 * m)]

    def pair(p, q):
        return 1 + 3 * p[0] * q[0] + 3 * p[1] * q[1] + p[2] * q[2]

    truth = pair(moments[0], moments[0]) + pair(moments[1], moments[1]) - 2 * pair(*moments)
    found = [distances.kid(gaussian(100, 1, 2 * i), gaussian(100, 1, 2 * i + 1, m)) for i in range(400)]
    error = torch.tensor(found).std().item() / math.sqrt(400)
    assert abs(sum(found) / 400 - truth) < 3 * error
    nothing = [distances.kid(gaussian(100, 1, 2 * i), gaussian(100, 1, 2 * i + 1)) for i in range(400)]
    assert abs(sum(nothing) / 400) < 3 * torch.tensor(nothing).std().item() / math.sqrt(400)


def test_precision_and_recall_see_what_is_missing_and_what_is_made_up():
    real = torch.cat([gaussian(200, 3, 0), gaussian(200, 3, 1, shift=30.0)])
    half, more = gaussian(200, 3, 2), torch.cat([real[::2] + 0.01, gaussian(200, 3, 3, shift=-30.0)])
    precision, recall = distances.precision_recall(half, real)
    assert precision > 0.9 and 0.4 < recall < 0.55  # one of two heaps is never drawn
    precision, recall = distances.precision_recall(more, real)
    assert precision == pytest.approx(0.5) and recall > 0.9  # half of what is drawn is nowhere near


def test_the_inception_score_is_one_for_one_class_and_their_number_for_all():
    logits = 50 * torch.eye(5).repeat(20, 1)
    assert distances.inception_score(logits, 1)[0] == pytest.approx(5, rel=1e-6)
    assert distances.inception_score(50 * torch.eye(5)[:1].repeat(20, 1), 1)[0] == pytest.approx(1)


def test_copies_are_found_and_new_pictures_are_not():
    train, held_out, drawn = (gaussian(300, 16, seed) for seed in range(3))
    fresh = distances.memorization(drawn, train, held_out)
    assert fresh["nearest_neighbor_ratio"] == pytest.approx(1, abs=0.05) and fresh["copied_fraction"] == 0
    copied = distances.memorization(train[:100] + 1e-3 * drawn[:100], train, held_out)
    assert copied["nearest_neighbor_ratio"] < 0.01 and copied["copied_fraction"] == 1


def test_the_nearest_are_those_of_a_plain_loop():
    points, among = gaussian(7, 3, 0), gaussian(11, 3, 1)
    found = distances.nearest_neighbors(points, among, 3)
    for i, point in enumerate(points):
        order = sorted(range(11), key=lambda j: (point - among[j]).norm().item())
        assert found.index[i].tolist() == order[:3]


@pytest.mark.parametrize("rows", [1000, 37])
def test_fid_kid_precision_and_recall_agree_with_torch_fidelity(sets, rows, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    assert fidelity.__version__
    monkeypatch.setattr(distances, "CHUNK_SIZE", rows)
    a, b = sets
    statistics = [metric_fid.fid_features_to_statistics(x.double()) for x in (a, b)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distances.fid(a, b) == pytest.approx(theirs, rel=1e-3)
    same = a[:320].double(), b.double()  # one subset of all rows
    theirs = metric_kid.kid_features_to_metric(*same, kid_subsets=1, kid_subset_size=320, verbose=False)
    assert distances.kid(*same) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    theirs = metric_prc.prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    assert distances.precision_recall(a, b) == pytest.approx((theirs["precision"], theirs["recall"]), rel=1e-3)
    theirs = metric_isc.isc_features_to_metric(a, splits=10, shuffle=False)
    ours = distances.inception_score(a, 10)
    assert ours == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-3)
    assert distances.fid(a, a + 0.1) != pytest.approx(distances.fid(a, b), rel=1e-3)
