"""A small part of what fuzz.py tries in hundreds of thousands."""

import fuzz
import pytest


@pytest.mark.parametrize("kind, count", [(fuzz.metadata, 1000), (fuzz.headers, 200), (fuzz.annotations, 200)])
def test_damaged_files_are_read_counted_or_refused_but_never_crash(kind, count, tmp_path):
    refused = kind(tmp_path / "data", count, seed=1234)
    assert refused < 0.9 * count  # most are read: the damage reaches deep


def test_the_fuzzer_finds_what_is_not_caught(tmp_path, monkeypatch):
    monkeypatch.setattr("latentdiff.data.tar.Sample.columns", lambda sample: {}["missing"])
    with pytest.raises(KeyError):
        fuzz.headers(tmp_path / "data", 200, seed=1)
