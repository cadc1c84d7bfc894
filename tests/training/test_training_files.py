import json

import pytest

from latentdiff.training.files import atomic_path, write_json


def test_a_failed_write_keeps_the_old_json_and_leaves_no_other_file(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_the_file_is_replaced_only_when_the_block_succeeds(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with atomic_path(path) as tmp:
        tmp.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as tmp:
        tmp.write_text("incomplete")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["x"]
