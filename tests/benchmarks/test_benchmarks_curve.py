"""Every checkpoint of a run is a point of the curve, evaluated once."""

import json

import pytest

from benchmarks import curve


@pytest.mark.slow
def test_every_checkpoint_is_evaluated_once_like_a_finished_run(stage_two_run, copy_run, tmp_path, monkeypatch):
    run = copy_run(stage_two_run)
    monkeypatch.setattr(curve, "RESULT", tmp_path / "curve.json")
    monkeypatch.setattr(curve, "PLOT", tmp_path / "curve.svg")
    curve.main([str(run), "--prompts", "4"])
    points = json.loads(curve.RESULT.read_text())["points"]
    assert [p["step"] for p in points] == [10, 20] and 0 < points[0]["minutes"] <= points[1]["minutes"]
    assert all(0 <= p["prompt_accuracy_low"] <= p["prompt_accuracy"] <= p["prompt_accuracy_high"] for p in points)
    assert (run / "curve" / "step_00000020" / "model.safetensors").read_bytes() == (
        run / "checkpoints" / "step_00000020" / "ema.safetensors"
    ).read_bytes()
    monkeypatch.setattr(curve, "prompt_metrics", lambda *_: pytest.fail("evaluated twice"))
    curve.main([str(run)])
    assert json.loads(curve.RESULT.read_text())["points"] == points
    assert "pairs never trained on" in curve.PLOT.read_text()
