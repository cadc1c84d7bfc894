"""The average of the weights and the schedule's tables are the original release's."""

import json

import pytest
import torch
import vectors
from safetensors.torch import load_file

from latentdiff.convert.compvis import key_map
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.training.ema import EMA

SCHEDULES = json.loads((vectors.FOLDER / "schedule.json").read_text())["variants"]
NAMES = {"linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt"}  # theirs -> ours


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"given_betas_T5"}))  # no model has betas of its own
def test_all_tables_of_a_schedule_equal_the_original_bit_for_bit(name):
    given, want = SCHEDULES[name], load_file(vectors.FOLDER / f"schedule_{name}.safetensors")
    start, end = given.get("linear_start", 1e-4), given.get("linear_end", 2e-2)
    config = ScheduleConfig(NAMES[given["beta_schedule"]], given["timesteps"], start, end)
    tables = key_map.schedule_buffers(Schedule(config))
    assert len(tables) == 12
    other = {"posterior_variance", "posterior_log_variance_clipped"} if "v_posterior" in given else set()
    wrong = {key for key, table in tables.items() if not torch.equal(table, want[key])}
    assert wrong == other  # that variance is of a kind which no model uses
    late = key_map.schedule_buffers(Schedule(ScheduleConfig(config.kind, config.timesteps, start, end * 1.0001)))
    assert not any(torch.equal(late[key], want[key]) for key in ("betas", "alphas_cumprod", "posterior_mean_coef1"))


def test_six_updates_of_the_average_equal_the_original():
    want = load_file(vectors.FOLDER / "ema.safetensors")
    model = torch.nn.Linear(3, 2)

    def fill(suffix: str) -> None:
        for name, parameter in model.named_parameters():
            parameter.data = torch.from_numpy(draw(name, suffix, parameter.shape))

    fill("")
    ema = EMA(model, 0.9999)
    for k in range(6):
        fill(f".{k}")
        ema.update(ema.share(k), torch.zeros(()))
        for name, average in ema.model.named_parameters():
            assert vectors.close(average, want[f"step{k + 1}.{name}"])
    assert not vectors.close(model.weight, want["step6.weight"], 0.1)


def draw(name: str, suffix: str, shape: torch.Size):
    """The weights before an update: noise named by the case; at the start those of the rule."""
    return vectors.noise_of(name, shape) if not suffix else vectors.normal("ema", f"{name}{suffix}", shape)
