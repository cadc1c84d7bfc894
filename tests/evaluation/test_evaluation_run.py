from argparse import Namespace

import pytest

from latentdiff.config import UserError
from latentdiff.evaluation import run


def test_captions_of_a_file_are_for_runs_that_read_nothing_else(tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\n\na ring\n")
    options = Namespace(prompts_file=str(tmp_path / "prompts.txt"))
    text, masked = (Namespace(tokenizer="words", conditioner=Namespace(parts=parts)) for parts in ([1], [1, 2]))
    assert run.read_prompts(options, text) == ("a star", "a ring")
    for other in (masked, Namespace(tokenizer=None, conditioner=Namespace(parts=[]))):
        with pytest.raises(UserError, match="text alone"):
            run.read_prompts(options, other)
