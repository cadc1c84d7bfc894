"""Few steps compared with many: the selection, and the criterion of equal quality."""

import json

import pytest
import torch

from benchmarks import few_steps


@pytest.mark.slow
def test_the_best_of_the_screened_settings_is_compared_with_ddim(stage_two_run, copy_run, tmp_path, monkeypatch):
    run = copy_run(stage_two_run)
    monkeypatch.setattr(few_steps, "RESULTS", tmp_path)
    few_steps.main([str(run), "--steps", "2", "--count", "12", "--screen", "6", "--features", "autoencoder"])
    result = json.loads((tmp_path / "few-steps-run.json").read_text())
    screened = {name: few_steps.preference(one) for name, one in result["screened"].items() if name != "images"}
    reference = screened.pop(result["reference"])
    assert result["reference"] == "ddim trailing 50" and reference == reference
    assert len(screened) == 12 and screened[result["best"]] == max(screened.values())
    assert {"kid", "prompt_accuracy"} == result["compared"].keys()
    for verdict in result["compared"].values():
        assert verdict["loss"][1] <= verdict["loss"][0] <= verdict["loss"][2]
        assert verdict["equal"] == (verdict["loss"][2] < verdict["allowed"])


def test_an_interval_that_reaches_beyond_the_allowed_loss_is_not_equal():
    assert few_steps.verdict(0.88, 0.9, (0.02, 0.0, 0.04), 0.09)["equal"]
    assert not few_steps.verdict(0.85, 0.9, (0.05, 0.0, 0.1), 0.09)["equal"]


def test_accuracy_is_preferred_and_kid_decides_between_equals():
    low_kid, accurate = {"kid": 0.1, "style": 0.4, "colour": 0.5}, {"kid": 0.9, "style": 0.6, "colour": 0.5}
    both = accurate | {"kid": 0.8}
    assert max((low_kid, accurate, both), key=few_steps.preference) is both


def test_the_accuracy_of_emoji_is_that_of_the_sampled_captions(monkeypatch):
    """The classifier predicts style i % 2 and colour 0 for image i; all captions have style 1 and colour 0."""
    monkeypatch.setattr(few_steps.emoji, "train_classifier", lambda *_: None)
    logits = lambda n: (torch.eye(2)[torch.arange(n) % 2], torch.eye(2)[torch.zeros(n, dtype=torch.long)])  # noqa: E731
    monkeypatch.setattr(few_steps.emoji, "predict", lambda network, x: logits(len(x)))
    monkeypatch.setattr(few_steps.loader, "images", lambda batch: batch["image"])
    monkeypatch.setattr(
        few_steps.loader, "sequential_batches", lambda images, *_: [{"image": torch.zeros(len(images), 3, 8, 8)}]
    )

    class Data:
        def __init__(self):
            self.listing = type("L", (), {"columns_of": {"a": {"colors": ["red"]}, "b": {"colors": ["tan"]}}})
            self.record = lambda i, key: {"style_id": 1, "colors": ["red"], "caption": f"image {i}"}

        __len__ = lambda self: 3  # noqa: E731

    monkeypatch.setattr(few_steps.recipe, "open_data", lambda recipe, split: Data())
    captions, accuracy = few_steps.emoji_accuracy(type("S", (), {"recipe": None}), 5)
    assert captions == ("image 0", "image 1", "image 2", "image 0", "image 1")
    correct = accuracy(range(4), range(1, 5))
    assert correct["style_accuracy"].tolist() == [False, True, False, True] and correct["colour_accuracy"].all()
