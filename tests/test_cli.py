import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, STAGE_TWO

from latentdiff import cli
from latentdiff.config import UserError
from latentdiff.recipe import DiffusionRecipe
from latentdiff.sampling import options as sampling_options
from latentdiff.training import progress

SCRIPTS = ("train_autoencoder", "train_diffusion", "sample", "evaluate")


def python(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_without_a_recipe_imports_nothing_slow(name):
    result = python("-X", "importtime", f"{name}.py", "--help")
    assert result.returncode == 0
    assert f"python {name}.py" in result.stdout
    modules = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "latentdiff" in modules and not modules & {"torch", "numpy", "PIL", "tokenizers", "safetensors"}


def test_importing_the_package_imports_no_torch():
    result = python("-c", "import latentdiff, sys; print(latentdiff.__version__, 'torch' in sys.modules)")
    assert result.stdout.split()[1] == "False"


def test_a_script_ends_with_one_line_and_exit_code_2():
    result = python("train_diffusion.py", STAGE_TWO[1], "train.stepz=3")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: train has no field 'stepz'") and result.stderr.count("\n") == 1


def refuse(argv):
    raise UserError("two\nlines  here")


LINE = "two lines here\n"


def error_line(capsys) -> str:
    with pytest.raises(SystemExit) as leaving:
        cli.run(refuse)
    assert leaving.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("rank, local, text", [("0", "0", LINE), ("1", "1", ""), ("8", "0", "rank 8: " + LINE)])
def test_before_the_ranks_meet_the_first_of_each_machine_prints_the_error(rank, local, text, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local)
    assert error_line(capsys) == (text and f"error: {text}")


def test_an_error_of_one_rank_has_its_number_and_a_shared_error_is_printed_once(monkeypatch, capsys):
    store, names = torch.distributed.HashStore(), ("is_initialized", "distributed_c10d._get_default_store")
    for name, value in zip(names, (True, store)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("latentdiff.training.distributed.reported_by_rank0.__defaults__", (0.1,))
    assert error_line(capsys) == f"error: rank 1: {LINE}"
    store.set("refused", "another reason")
    assert error_line(capsys) == f"error: rank 1: {LINE}"
    monkeypatch.setenv("RANK", "0")
    assert error_line(capsys) == f"error: {LINE}"
    monkeypatch.setenv("RANK", "1")
    assert error_line(capsys) == ""


def test_out_of_memory_is_one_line_that_says_what_uses_less(capsys):
    def fail(argv):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of ...")

    with pytest.raises(SystemExit) as leaving:
        cli.run(fail)
    error = capsys.readouterr().err
    assert leaving.value.code == 2 and error.count("\n") == 1 and "GPU 0" not in error
    assert error.startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB. To train with less memory")
    assert "train.grad_accum_steps" in error


def test_other_exceptions_are_raised():
    def fail(argv):
        raise AssertionError("a bug")

    with pytest.raises(AssertionError):
        cli.run(fail)


# ---- training


def resolved(*argv):
    return cli.training_recipe([STAGE_TWO[1], *argv], DiffusionRecipe, "unused.py")


def test_assignments_are_applied_in_order_and_options_may_stand_anywhere():
    recipe, report_to = resolved("train.steps=3", "--overfit", "5", "train.steps=4", "name=mine")
    assert (recipe.train.steps, recipe.train.overfit, recipe.name, report_to) == (4, 5, "mine-overfit5", None)
    assert resolved("--overfit=2")[0].train.overfit == 2


def test_the_recipe_may_stand_anywhere_in_argv():
    argv = ["autoencoder=other.py", STAGE_TWO[1], "train.steps=3"]
    recipe, _ = cli.training_recipe(argv, DiffusionRecipe, "unused.py")
    assert (recipe.name, recipe.train.steps, recipe.autoencoder.path) == ("tiny", 3, "other.py")


def test_a_recipe_is_named_after_its_file():
    assert resolved()[0].name == resolved("name=")[0].name == "tiny"


def test_without_a_file_the_default_is_used():
    assert cli.training_recipe(["train.steps=3"], DiffusionRecipe, STAGE_TWO[1])[0].train.steps == 3
    with pytest.raises(UserError, match=r"there is no recipe at nowhere\.py"):
        cli.training_recipe([], DiffusionRecipe, "nowhere.py")


def test_a_report_to_what_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"latentdiff\[wandb\]"):
        resolved("--report-to", "wandb")
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: SimpleNamespace())
    assert resolved("--report-to=wandb")[1] == "wandb"


# ---- sampling


def test_every_alias_means_the_same():
    aliases = {
        "steps": ("--steps", "--ddim_steps", "--ddim-steps", "--num-inference-steps", "--num_inference_steps"),
        "guidance_scale": ("--guidance-scale", "--guidance_scale", "--scale", "--cfg-scale"),
        "num_images": ("--num-images", "--n_samples"), "height": ("--height", "--H"), "width": ("--width", "--W"),
        "eta": ("--eta", "--ddim_eta"), "output": ("--output", "--outdir", "--output_dir"),
        "prompts_file": ("--prompts-file", "--from-file", "--from_file"), "run": ("--run", "--ckpt"),
    }  # fmt: skip
    for name, options in aliases.items():
        for option in options:
            for argv in ([option, "3"], [f"{option}=3"]):
                assert float(getattr(sampling_options.sample_arguments(argv), name)) == 3


def test_every_option_is_in_the_help():
    for option in [*sampling_options._OPTIONS, "--prompt", "--no-grid"]:
        assert f"{option} " in sampling_options.HELP + " " or f"{option}\n" in sampling_options.HELP


def test_values_keep_their_underscores():
    assert sampling_options.sample_arguments(["--prompt", "a_b", "--prompt=c_d"]).prompt == ["a_b", "c_d"]


@pytest.mark.parametrize("text, count, seeds", [
    ("7", 3, [7, 8, 9]), ("0", 1, [0]), ("0-15", 1, list(range(16))), ("3-3", 5, [3]),
])  # fmt: skip
def test_seeds(text, count, seeds):
    assert sampling_options.read_seeds(text, count) == seeds


@pytest.mark.parametrize("text", ["", "-1", "a", "5-2", "1-", "1,2", "9" * 20])
def test_wrong_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seed"):
        sampling_options.read_seeds(text, 1)


@pytest.mark.parametrize("argv", [["--steps", "0"], ["--num-images", "-1"], ["--batch-size=0"], ["--steps", "x"],
                                   ["--colour"], ["stray"], ["--prompt"]])  # fmt: skip
def test_wrong_options_are_refused(argv):
    with pytest.raises(UserError):
        sampling_options.sample_arguments(argv)


def test_a_progress_bar_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    bar = progress.bar(3, "sampling")
    bar.update()
    bar.close()
