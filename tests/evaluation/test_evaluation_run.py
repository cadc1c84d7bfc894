"""The prompts of --prompts-file."""

from argparse import Namespace

import pytest

from latentdiff.config import UserError
from latentdiff.evaluation import run


def test_a_prompts_file_is_refused_unless_text_is_the_only_condition(tmp_path):
    (tmp_path / "prompts.txt").write_text("a star\n\na ring\n")
    options = Namespace(prompts_file=str(tmp_path / "prompts.txt"))
    text, masked = (Namespace(tokenizer="tokenizer", conditioner=Namespace(parts=parts)) for parts in ([1], [1, 2]))
    assert run.read_prompts(options, text) == ("a star", "a ring")
    for other in (masked, Namespace(tokenizer=None, conditioner=Namespace(parts=[]))):
        with pytest.raises(UserError, match="text alone"):
            run.read_prompts(options, other)
