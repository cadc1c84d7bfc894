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


def test_the_frechet_distance_of_gaussians_equals_its_closed_form():
    """|m - m'|² + tr(C + C' - 2 (C C')^½): for commuting covariances the squared differences of the deviations."""
    m, n = torch.tensor([1.0, 2.0]).double(), torch.tensor([4.0, -2.0]).double()
    a, b = torch.tensor([4.0, 9.0]).double().diag(), torch.tensor([1.0, 25.0]).double().diag()
    assert distances.frechet_distance(m, a, n, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)
    q = torch.linalg.qr(gaussian(2, 2, 3)).Q  # a rotation
    assert distances.frechet_distance(m, q @ a @ q.T, m, q @ b @ q.T) == pytest.approx(5)
    assert distances.frechet_distance(m, a, m, a) == pytest.approx(0, abs=1e-9)


def test_fid_of_samples_converges_to_the_closed_form():
    a, b = gaussian(20000, 4, 0), gaussian(20000, 4, 1, shift=1.0, scale=2.0)
    assert distances.fid(a, b) == pytest.approx(4 * (1 + 1), rel=0.03)
    assert distances.fid(a, gaussian(20000, 4, 2)) < 0.01


def test_kid_is_unbiased_and_converges_to_the_closed_form():
    """Of N(0, 1) and N(m, 1) in one dimension: E[(xy + 1)^3] = 1 + 3 E[xy] + 3 E[x²]E[y²] + E[x³]E[y³]."""
    m = 0.5
    moments = [(0.0, 1.0, 0.0), (m, 1 + m * m, m**3 + 3 * m)]

    def mean_kernel(p, q):
        return 1 + 3 * p[0] * q[0] + 3 * p[1] * q[1] + p[2] * q[2]

    within = mean_kernel(moments[0], moments[0]) + mean_kernel(moments[1], moments[1])
    expected = within - 2 * mean_kernel(*moments)
    different = [distances.kid(gaussian(100, 1, 2 * i), gaussian(100, 1, 2 * i + 1, m)) for i in range(400)]
    error = torch.tensor(different).std().item() / math.sqrt(400)
    assert abs(sum(different) / 400 - expected) < 3 * error
    same = [distances.kid(gaussian(100, 1, 2 * i), gaussian(100, 1, 2 * i + 1)) for i in range(400)]
    assert abs(sum(same) / 400) < 3 * torch.tensor(same).std().item() / math.sqrt(400)


def test_recall_drops_for_missing_modes_and_precision_for_unrealistic_samples():
    real = torch.cat([gaussian(200, 3, 0), gaussian(200, 3, 1, shift=30.0)])
    one_mode, half_outside = gaussian(200, 3, 2), torch.cat([real[::2] + 0.01, gaussian(200, 3, 3, shift=-30.0)])
    precision, recall = distances.precision_recall(one_mode, real)
    assert precision > 0.9 and 0.4 < recall < 0.55  # one of two modes is not sampled
    precision, recall = distances.precision_recall(half_outside, real)
    assert precision == pytest.approx(0.5) and recall > 0.9  # half of the samples are far from all real points


def test_the_inception_score_is_one_for_one_class_and_the_number_of_classes_for_all():
    logits = 50 * torch.eye(5).repeat(20, 1)
    assert distances.inception_score(logits, 1)[0] == pytest.approx(5, rel=1e-6)
    assert distances.inception_score(50 * torch.eye(5)[:1].repeat(20, 1), 1)[0] == pytest.approx(1)


def test_copies_of_training_images_are_detected_and_new_images_are_not():
    train, held_out, samples = (gaussian(300, 16, seed) for seed in range(3))
    new = distances.memorization(samples, train, held_out)
    assert new["nearest_neighbor_ratio"] == pytest.approx(1, abs=0.05) and new["copied_fraction"] == 0
    copied = distances.memorization(train[:100] + 1e-3 * samples[:100], train, held_out)
    assert copied["nearest_neighbor_ratio"] < 0.01 and copied["copied_fraction"] == 1


def test_nearest_neighbors_equal_an_explicit_loop():
    points, candidates = gaussian(7, 3, 0), gaussian(11, 3, 1)
    neighbors = distances.nearest_neighbors(points, candidates, 3)
    for i, point in enumerate(points):
        order = sorted(range(11), key=lambda j: (point - candidates[j]).norm().item())
        assert neighbors.index[i].tolist() == order[:3]


@pytest.mark.parametrize("chunk_size", [1000, 37])
def test_fid_kid_precision_and_recall_agree_with_torch_fidelity(sets, chunk_size, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    assert fidelity.__version__
    monkeypatch.setattr(distances, "CHUNK_SIZE", chunk_size)
    a, b = sets
    statistics = [metric_fid.fid_features_to_statistics(x.double()) for x in (a, b)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert distances.fid(a, b) == pytest.approx(expected, rel=1e-3)
    same = a[:320].double(), b.double()  # one subset with all features
    expected = metric_kid.kid_features_to_metric(*same, kid_subsets=1, kid_subset_size=320, verbose=False)
    assert distances.kid(*same) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)
    expected = metric_prc.prc_features_to_metric(a, b, prc_neighborhood=3, verbose=False)
    assert distances.precision_recall(a, b) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-3)
    expected = metric_isc.isc_features_to_metric(a, splits=10, shuffle=False)
    score = distances.inception_score(a, 10)
    assert score == pytest.approx((expected["inception_score_mean"], expected["inception_score_std"]), rel=1e-3)
    assert distances.fid(a, a + 0.1) != pytest.approx(distances.fid(a, b), rel=1e-3)
