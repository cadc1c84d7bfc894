"""`python -m latentdiff.data.check` reports the content of a dataset, its problems and how to fix them."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentdiff.config import UserError
from latentdiff.data import check

DATA = Path(os.environ.get("LATENTDIFF_DATA", "data"))


def png(seed: int, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def report(tmp_path: Path, capsys) -> Callable[..., tuple[int, dict, list[str]]]:
    """report({name: content}, options...) -> exit code, JSON report, problems as text; None as content: an image."""

    def report(files: dict[str, object], *options: str, path: str = "") -> tuple[int, dict, list[str]]:
        for i, (name, content) in enumerate(files.items()):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            content = png(i) if content is None else content
            if isinstance(content, list):
                content = "\n".join(json.dumps(entry) for entry in content)
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        code = check.main([str(tmp_path / path), "--json", "--size", "8", *options])
        stats = json.loads(capsys.readouterr().out)
        return code, stats, [f"{f['description']} -> {f['fix']}" for f in stats["findings"] if f["problem"]]

    return report


def table(*names: str, **columns) -> list[dict]:
    return [{"file_name": name, "text": f"image {name}", **columns} for name in names]


VALID = {"train/a.png": None, "train/b.png": None, "train/metadata.jsonl": table("a.png", "b.png"), "val/c.png": None,
         "val/metadata.jsonl": table("c.png")}  # fmt: skip


def test_a_valid_folder_has_statistics_and_no_problems(report):
    code, stats, problems = report(VALID)
    assert code == 0 and problems == [] and stats["format"] == "Folder"
    train = stats["splits"]["train"]
    assert train["images"] == 2 and train["formats"] == {"PNG": 2} and train["modes"] == {"RGB": 2}
    assert train["width"] == {"min": 12, "median": 12, "max": 12} and train["height"]["max"] == 8
    assert train["captions"]["count"] == 2 and train["captions"]["tokens"]["max"] >= 4
    assert stats["splits"]["val"]["images"] == 1 and "test" not in stats["splits"]


@pytest.mark.parametrize(
    "files, message",
    [
        ({"train/metadata.json1": "x"}, "1 table not read -> rename them to metadata.jsonl"),
        ({"train/metadata.jsonl": [*table("a.png"), {"filename": "b.png"}]}, "1 entry of .* cannot be used -> fix"),
        ({"train/metadata.jsonl": table("a.png", "gone.png")}, "1 entry of tables.* cannot be used -> fix or remove"),
        ({"train/metadata.jsonl": table("a.png")}, "1 image not listed in a table, not used -> give each a row"),
        ({"train/b.png": png(1)[:60]}, "1 image of train cannot be read -> fix or remove"),
        ({"train/metadata.jsonl": [*table("a.png"), {"file_name": "b.png"}]}, "whose caption is missing"),
        ({"train/metadata.jsonl": [*table("a.png"), {"file_name": "b.png", "text": " "}]}, "whose caption is empty"),
        ({"train/metadata.jsonl": table("a.png") + table("b.png", label="x")}, "2 images without a label where others"),
        ({"loose.png": None}, "1 image outside the folders of the splits -> move them to train/"),
        ({"valid8/x.png": None}, "1 folder almost named like a split"),
        ({"val/d.png": png(0), "val/metadata.jsonl": table("c.png", "d.png")}, "1 image of val also in train"),
    ],
)  # fmt: skip
def test_each_problem_is_reported_with_its_fix(report, files, message):
    valid = {name: content for name, content in VALID.items() if "json1" not in str(files) or "metadata" not in name}
    code, _, problems = report(valid | files)
    assert code == 1 and [p for p in problems if re.search(message, p)], problems


def test_text_files_that_are_not_read_as_captions_are_reported(report):
    files = {
        "a.png": None,
        "a.txt": "one",
        "b.png": None,
        "b.png.txt": "two",
        "c.png": None,
        "c.TXT": "x",
        "d.txt": "x",
    }
    code, stats, problems = report(files)
    assert code == 1
    assert any(p.startswith("2 texts beside images, not read -> rename") for p in problems)
    assert any(p.startswith("1 text without an image of the same name") for p in problems)
    assert stats["splits"]["train"]["without_caption"] == {"missing": 2}


def test_notes_do_not_count_as_problems(report):
    image = png(1)
    captions = [{"file_name": f"{name}.png", "text": "the same"} for name in "abc"]
    files = {
        "train/a.png": image,
        "train/b.png": image,
        "train/c.png": png(3, (40, 4)),
        "train/metadata.jsonl": captions,
    }
    files |= {"val/d.png": png(4), "val/metadata.jsonl": table("d.png")}
    code, stats, problems = report(files)
    notes = "; ".join(f["description"] for f in stats["findings"])
    assert code == 0 and not problems
    assert "1 image of train the same as another" in notes
    assert "1 of them distinct" in notes and "below 8" in notes and "factor of three" in notes


def test_tar_shards_and_coco_annotations_are_detected_by_file_name(report, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("a.png", png(0)), ("a.txt", b"one"), ("b.png", b"x"), ("c.txt", b"two")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for path in ("", "0.tar"):
        code, stats, problems = report({}, path=path)
        assert code == 1 and stats["format"] == "Tar"
        assert sum(split["images"] for split in stats["splits"].values()) == 2
        assert any("cannot be read" in p for p in problems) and any("cannot be used" in p for p in problems)
    (tmp_path / "0.tar").unlink()
    annotations = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    code, stats, problems = report(
        {"train2017/a.png": None, "annotations/captions_train2017.json": json.dumps(annotations)}
    )
    assert code == 0 and stats["format"] == "Coco" and stats["splits"]["train"]["captions"]["count"] == 1


def test_sample_limits_the_number_of_inspected_images(report):
    code, stats, _ = report({f"{i:02}.png": None for i in range(20)}, "--sample", "5")
    train, val = stats["splits"]["train"], stats["splits"]["val"]
    assert code == 0 and train["inspected"] == 5 and train["images"] + val["images"] == 20


def test_the_text_report_lists_problems_and_ends_with_their_number(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "b\udcff.png").write_bytes(b"none")
    assert check.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "to fix: 1 image of train cannot be read" in out and out.endswith("1 problem found\n")


@pytest.mark.parametrize("argv", [["/no/such"], [__file__], [], ["x", "--wrong"], [".", "--sample", "-1"]])
def test_invalid_arguments_raise_a_user_error(argv):
    with pytest.raises(UserError):
        check.main(argv)


def test_a_misnamed_file_name_column_is_an_error_if_no_image_is_left(report):
    with pytest.raises(UserError, match=r"metadata.jsonl:1 has no file_name .rename filename..; its columns are"):
        report({"a.png": None, "metadata.jsonl": [{"filename": "a.png", "text": "x"}]})


@pytest.mark.slow
def test_a_missing_path_gives_exit_code_2_and_one_line():
    result = subprocess.run([sys.executable, "-m", "latentdiff.data.check", "/no/such"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.startswith("error: /no/such does not exist") and not result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "photos").exists(), reason=f"needs {DATA}/photos (LATENTDIFF_DATA)")
def test_a_real_folder_of_photographs_has_no_problems(capsys):
    assert check.main([str(DATA / "photos/trashnet"), "--sample", "50"]) == 0
    assert "cardboard" in capsys.readouterr().out
