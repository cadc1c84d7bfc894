"""A short run of the fuzzer; fuzz.py runs it for longer."""

import fuzz
import pytest


@pytest.mark.parametrize(
    "fuzz_files, count", [(fuzz.fuzz_metadata, 1000), (fuzz.fuzz_headers, 200), (fuzz.fuzz_annotations, 200)]
)
def test_damaged_files_are_read_or_refused_without_a_crash(fuzz_files, count, tmp_path):
    refused = fuzz_files(tmp_path / "data", count, seed=1234)
    assert refused < 0.9 * count  # most are read, so that the code after parsing is tested, too


def test_the_fuzzer_raises_errors_that_are_not_user_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("latentdiff.data.tar.Sample.columns", lambda sample: {}["missing"])
    with pytest.raises(KeyError):
        fuzz.fuzz_headers(tmp_path / "data", 200, seed=1)
