"""Few steps against many: what is compared, and what counts as equal."""

import json

import pytest
import torch

from benchmarks import few_steps


@pytest.mark.slow
def test_the_best_of_those_that_were_screened_is_compared_with_ddim(stage_two_run, copy_run, tmp_path, monkeypatch):
    run = copy_run(stage_two_run)
    monkeypatch.setattr(few_steps, "RESULTS", tmp_path)
    few_steps.main([str(run), "--steps", "2", "--count", "12", "--screen", "6", "--features", "autoencoder"])
    found = json.loads((tmp_path / "few-steps-run.json").read_text())
    screened = {name: few_steps.preference(one) for name, one in found["screened"].items() if name != "pictures"}
    reference = screened.pop(found["reference"])
    assert found["reference"] == "ddim trailing 50" and reference == reference
    assert len(screened) == 12 and screened[found["best"]] == max(screened.values())
    assert {"kid", "prompts right"} == found["compared"].keys()
    for one in found["compared"].values():
        assert one["loss"][1] <= one["loss"][0] <= one["loss"][2]
        assert one["equal"] == (one["loss"][2] < one["allowed"])


def test_a_loss_that_may_be_too_large_is_not_equal():
    assert few_steps.verdict(0.88, 0.9, (0.02, 0.0, 0.04), 0.09)["equal"]
    assert not few_steps.verdict(0.85, 0.9, (0.05, 0.0, 0.1), 0.09)["equal"]


def test_what_is_right_is_preferred_and_kid_decides_between_equals():
    nearer, righter = {"kid": 0.1, "style": 0.4, "colour": 0.5}, {"kid": 0.9, "style": 0.6, "colour": 0.5}
    same = righter | {"kid": 0.8}
    assert max((nearer, righter, same), key=few_steps.preference) is same


def test_verdicts_on_emoji_are_of_the_captions_that_were_drawn(monkeypatch):
    """The judge sees style i % 2 and colour 0 in picture i; captions name style 1 and colour 0 throughout."""
    monkeypatch.setattr(few_steps.emoji, "train_judge", lambda *_: None)
    seen = lambda n: (torch.eye(2)[torch.arange(n) % 2], torch.eye(2)[torch.zeros(n, dtype=torch.long)])  # noqa: E731
    monkeypatch.setattr(few_steps.emoji, "verdicts", lambda network, x: seen(len(x)))
    monkeypatch.setattr(few_steps.loader, "images", lambda batch: batch["image"])
    monkeypatch.setattr(
        few_steps.loader, "sequential_batches", lambda drawn, *_: [{"image": torch.zeros(len(drawn), 3, 8, 8)}]
    )

    class Data:
        def __init__(self):
            self.listing = type("L", (), {"rows": {"a": {"colors": ["red"]}, "b": {"colors": ["tan"]}}})
            self.record = lambda i, key: {"style_id": 1, "colors": ["red"], "caption": f"picture {i}"}

        __len__ = lambda self: 3  # noqa: E731

    monkeypatch.setattr(few_steps.recipe, "open_data", lambda recipe, split: Data())
    captions, judge = few_steps.of_emoji(type("S", (), {"recipe": None}), 5)
    assert captions == ("picture 0", "picture 1", "picture 2", "picture 0", "picture 1")
    found = judge(range(4), range(1, 5))
    assert found["style right"].tolist() == [False, True, False, True] and found["colour right"].all()
