import math

from latentdiff.training.diagnostics import Diagnostics, Rule

RULES = (
    Rule("accuracy", 0.5, 0.9, "{value:.0%} for {steps} steps"),
    Rule("accuracy", 0.0, 0.95, "far too high"),
)


def warnings_of(values, steps=2000, every=50):
    """The warnings while `accuracy` has these values, one per `every` steps."""
    warnings = []
    diagnostics = Diagnostics(RULES, steps, warnings.append)
    for i, value in enumerate(values):
        diagnostics.check(i * every, {"accuracy": value})
    return warnings


def test_a_lasting_problem_is_reported_once():
    assert warnings_of([0.7] * 20) == []
    assert warnings_of([0.4] * 2) == []  # 50 steps
    assert warnings_of([0.4] * 20) == ["WARNING: 40% for 100 steps"]
    assert warnings_of([0.4, 0.7] * 20) == []


def test_a_problem_that_recurs_is_reported_again():
    assert len(warnings_of([0.4] * 9 + [0.7] + [0.3] * 9)) == 2


def test_each_rule_is_counted_separately():
    assert warnings_of([0.92] * 9) == ["WARNING: 92% for 100 steps"]
    assert warnings_of([0.99] * 9) == ["WARNING: 99% for 100 steps", "WARNING: far too high"]


def test_a_long_run_waits_longer():
    assert warnings_of([0.4] * 20, steps=100_000) == []
    assert warnings_of([0.4] * 21, steps=100_000) == ["WARNING: 40% for 1000 steps"]


def test_reports_without_the_metric_give_no_warning():
    warnings = []
    diagnostics = Diagnostics(RULES, 100, warnings.append)
    for step in range(0, 1000, 50):
        diagnostics.check(step, None)
        diagnostics.check(step, {"other": 1.0})
        diagnostics.check(step, {"accuracy": math.nan})
    assert warnings == []
