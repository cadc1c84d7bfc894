"""The Python example in docs/data.md works."""

import csv
import re
from pathlib import Path

from PIL import Image

from latentdiff.data.folder import FolderConfig, FolderDataset

DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_the_openimages_example_converts_boxes_to_pixels(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("data/openimages/train").mkdir(parents=True)
    for name in ("abc", "def"):
        Image.new("RGB", (40, 20)).save(f"data/openimages/train/{name}.jpg")
    Path("class-descriptions-boxable.csv").write_text("/m/01,Tortoise\n/m/02,Container\n")
    names = ("ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax")
    with open("oidv6-train-annotations-bbox.csv", "w", newline="") as file:
        csv.writer(file).writerows([names, ("abc", "x", "/m/02", 1, 0.25, 0.75, 0.5, 1.0)])
    exec(code, {})
    data = FolderDataset(FolderConfig("data/openimages", val_fraction=0.0), "train")
    objects = [data.record(i, 0)["objects"] for i in range(2)]
    empty = {"bbox": [], "categories": []}
    assert objects == [{"bbox": [[10.0, 10.0, 20.0, 10.0]], "categories": [1]}, empty] and not data.unreadable
