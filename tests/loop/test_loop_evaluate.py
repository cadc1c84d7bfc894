"""evaluate.py: figures of either stage as JSON."""

import json

from conftest import call


def test_stage_one_is_measured_by_its_reconstructions(unbroken_one, tmp_path, capsys):
    call("evaluate", unbroken_one, "--output", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["step"] == 20 and figures["reconstructions"] == 16 and 0 < figures["psnr"] < 60
    assert "psnr" in capsys.readouterr().out
    assert not (unbroken_one / "evaluation.json").exists()


def test_text_to_shapes_is_measured_by_a_reader(unbroken_two, copy_of):
    run = copy_of(unbroken_two)
    call("evaluate", run, "--prompts", 4)
    figures = json.loads((run / "evaluation.json").read_text())
    assert 0 <= figures["prompt_accuracy_low"] <= figures["prompt_accuracy"] <= figures["prompt_accuracy_high"] <= 1
    assert figures["prompts"] == 4 and "prompt_accuracy_left_out" in figures


def test_a_summary_needs_text(unbroken_one, refused, tmp_path):
    error = refused("evaluate", unbroken_one, "--output", tmp_path / "figures.json", "--summary")
    assert "--summary is for text-to-image runs" in error
    assert not (unbroken_one / "summary.json").exists()
