import math

from latentdiff.training.diagnostics import Health, Rule

RULES = (Rule("right", 0.5, 0.9, "{value:.0%} for {steps} steps"), Rule("right", 0.0, 0.95, "far too much"))


def said_of(values, steps=2000, every=50):
    """What is said while `right` takes these values, one per 50 steps."""
    said = []
    health = Health(RULES, steps, said.append)
    for i, value in enumerate(values):
        health.look(i * every, {"right": value})
    return said


def test_what_is_amiss_for_long_is_said_once():
    assert said_of([0.7] * 20) == []
    assert said_of([0.4] * 2) == []  # 50 steps
    assert said_of([0.4] * 20) == ["WARNING: 40% for 100 steps"]
    assert said_of([0.4, 0.7] * 20) == []


def test_what_comes_back_is_said_again():
    assert len(said_of([0.4] * 9 + [0.7] + [0.3] * 9)) == 2


def test_rules_are_counted_each_by_itself():
    assert said_of([0.92] * 9) == ["WARNING: 92% for 100 steps"]
    assert said_of([0.99] * 9) == ["WARNING: 99% for 100 steps", "WARNING: far too much"]


def test_a_long_run_has_more_patience():
    assert said_of([0.4] * 20, steps=100_000) == []
    assert said_of([0.4] * 21, steps=100_000) == ["WARNING: 40% for 1000 steps"]


def test_reports_without_the_number_say_nothing():
    said = []
    health = Health(RULES, 100, said.append)
    for step in range(0, 1000, 50):
        health.look(step, None)
        health.look(step, {"other": 1.0})
        health.look(step, {"right": math.nan})
    assert said == []
