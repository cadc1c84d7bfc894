"""`python -m latentdiff.data.check` says what a data set holds, what is wrong with it and how to mend it."""

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


def picture(seed: int, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def report(tmp_path: Path, capsys) -> Callable[..., tuple[int, dict, list[str]]]:
    """report({name: content}, options...) -> exit code, the JSON, and the problems in words; None is a picture."""

    def report(files: dict[str, object], *options: str, path: str = "") -> tuple[int, dict, list[str]]:
        for i, (name, content) in enumerate(files.items()):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            content = picture(i) if content is None else content
            if isinstance(content, list):
                content = "\n".join(json.dumps(row) for row in content)
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        code = check.main([str(tmp_path / path), "--json", "--size", "8", *options])
        facts = json.loads(capsys.readouterr().out)
        return code, facts, [f"{f['what']} -> {f['mend']}" for f in facts["findings"] if f["problem"]]

    return report


def rows(*names: str, **more) -> list[dict]:
    return [{"file_name": name, "text": f"picture {name}", **more} for name in names]


SOUND = {"train/a.png": None, "train/b.png": None, "train/metadata.jsonl": rows("a.png", "b.png"), "val/c.png": None,
         "val/metadata.jsonl": rows("c.png")}  # fmt: skip


def test_a_sound_folder_is_fine_and_counted(report):
    code, facts, problems = report(SOUND)
    assert code == 0 and problems == [] and facts["kind"] == "Folder"
    train = facts["splits"]["train"]
    assert train["pictures"] == 2 and train["formats"] == {"PNG": 2} and train["modes"] == {"RGB": 2}
    assert train["width"] == {"least": 12, "median": 12, "most": 12} and train["height"]["most"] == 8
    assert train["captions"]["count"] == 2 and train["captions"]["tokens"]["most"] >= 4
    assert facts["splits"]["val"]["pictures"] == 1 and "test" not in facts["splits"]


@pytest.mark.parametrize(
    "files, words",
    [
        ({"train/metadata.json1": "x"}, "1 table not read -> rename them to metadata.jsonl"),
        ({"train/metadata.jsonl": [*rows("a.png"), {"filename": "b.png"}]}, "1 entry of tables.* of no use -> mend"),
        ({"train/metadata.jsonl": rows("a.png", "gone.png")}, "1 entry of tables.* of no use -> mend or remove"),
        ({"train/metadata.jsonl": rows("a.png")}, "1 picture named in no table, left out -> give each a row"),
        ({"train/b.png": picture(1)[:60]}, "1 picture of train cannot be read -> mend or remove"),
        ({"train/metadata.jsonl": [*rows("a.png"), {"file_name": "b.png"}]}, "whose caption is missing"),
        ({"train/metadata.jsonl": [*rows("a.png"), {"file_name": "b.png", "text": " "}]}, "whose caption is empty"),
        ({"train/metadata.jsonl": rows("a.png") + rows("b.png", label="x")}, "2 pictures without a label where others"),
        ({"loose.png": None}, "1 picture outside the folders of the splits -> move them to train/"),
        ({"valid8/x.png": None}, "1 folder almost named like a split"),
        ({"val/d.png": picture(0), "val/metadata.jsonl": rows("c.png", "d.png")}, "1 picture of val also in train"),
    ],
)  # fmt: skip
def test_each_fault_is_found_with_how_to_mend_it(report, files, words):
    sound = {name: content for name, content in SOUND.items() if "json1" not in str(files) or "metadata" not in name}
    code, _, problems = report(sound | files)
    assert code == 1 and [p for p in problems if re.search(words, p)], problems


def test_texts_beside_pictures_that_are_not_read_are_found(report):
    files = {
        "a.png": None,
        "a.txt": "one",
        "b.png": None,
        "b.png.txt": "two",
        "c.png": None,
        "c.TXT": "x",
        "d.txt": "x",
    }
    code, facts, problems = report(files)
    assert code == 1
    assert any(p.startswith("2 texts beside pictures, not read -> rename") for p in problems)
    assert any(p.startswith("1 text without a picture of its name") for p in problems)
    assert facts["splits"]["train"]["without_caption"] == {"missing": 2}


def test_what_is_only_worth_knowing_is_no_problem(report):
    same = picture(1)
    said = [{"file_name": f"{name}.png", "text": "the same"} for name in "abc"]
    files = {"train/a.png": same, "train/b.png": same, "train/c.png": picture(3, (40, 4)), "train/metadata.jsonl": said}
    files |= {"val/d.png": picture(4), "val/metadata.jsonl": rows("d.png")}
    code, facts, problems = report(files)
    notes = "; ".join(f["what"] for f in facts["findings"])
    assert code == 0 and not problems
    assert "1 picture of train the same as another" in notes
    assert "1 of them distinct" in notes and "below 8" in notes and "three times" in notes


def test_shards_and_annotations_are_known_by_their_names(report, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("a.png", picture(0)), ("a.txt", b"one"), ("b.png", b"x"), ("c.txt", b"two")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for path in ("", "0.tar"):
        code, facts, problems = report({}, path=path)
        assert code == 1 and facts["kind"] == "Tars"
        assert sum(split["pictures"] for split in facts["splits"].values()) == 2
        assert any("cannot be read" in p for p in problems) and any("of no use" in p for p in problems)
    (tmp_path / "0.tar").unlink()
    said = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    code, facts, problems = report({"train2017/a.png": None, "annotations/captions_train2017.json": json.dumps(said)})
    assert code == 0 and facts["kind"] == "Coco" and facts["splits"]["train"]["captions"]["count"] == 1


def test_a_sample_is_spread_over_the_split(report):
    code, facts, _ = report({f"{i:02}.png": None for i in range(20)}, "--sample", "5")
    train, val = facts["splits"]["train"], facts["splits"]["val"]
    assert code == 0 and train["looked_at"] == 5 and train["pictures"] + val["pictures"] == 20


def test_the_text_names_problems_and_ends_in_their_number(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "b\udcff.png").write_bytes(b"none")
    assert check.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "to mend: 1 picture of train cannot be read" in out and out.endswith("1 problem found\n")


@pytest.mark.parametrize("words", [["/no/such"], [__file__], [], ["x", "--wrong"], [".", "--sample", "-1"]])
def test_user_errors_are_told_from_problems(words):
    with pytest.raises(UserError):
        check.main(words)


def test_a_column_of_another_name_is_told_where_nothing_else_is_left(report):
    with pytest.raises(UserError, match=r"metadata.jsonl:1 has no file_name .rename filename..; its columns are"):
        report({"a.png": None, "metadata.jsonl": [{"filename": "a.png", "text": "x"}]})


@pytest.mark.slow
def test_a_script_sees_exit_code_2_and_one_line():
    ran = subprocess.run([sys.executable, "-m", "latentdiff.data.check", "/no/such"], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith("error: /no/such does not exist") and not ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "photos").exists(), reason=f"needs {DATA}/photos (LATENTDIFF_DATA)")
def test_a_folder_of_photographs_is_fine(capsys):
    assert check.main([str(DATA / "photos/trashnet"), "--sample", "50"]) == 0
    assert "cardboard" in capsys.readouterr().out
