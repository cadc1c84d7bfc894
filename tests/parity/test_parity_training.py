"""The EMA and the tables of the noise schedule equal the original release's."""

import json

import pytest
import torch
import vectors
from safetensors.torch import load_file

from latentdiff.convert.compvis.key_maps import schedule_buffers
from latentdiff.convert.compvis.model_config import SCHEDULES as KINDS
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.training.ema import EMA

SCHEDULES = json.loads((vectors.FOLDER / "schedule.json").read_text())["variants"]


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"given_betas_T5"}))  # no released model has given_betas
def test_all_tables_of_a_schedule_equal_the_original_bit_for_bit(name):
    params, expected = SCHEDULES[name], load_file(vectors.FOLDER / f"schedule_{name}.safetensors")
    start, end = params.get("linear_start", 1e-4), params.get("linear_end", 2e-2)
    config = ScheduleConfig(KINDS[params["beta_schedule"]], params["timesteps"], start, end)
    tables = schedule_buffers(Schedule(config))
    assert len(tables) == 12
    unused = {"posterior_variance", "posterior_log_variance_clipped"} if "v_posterior" in params else set()
    different = {key for key, table in tables.items() if not torch.equal(table, expected[key])}
    assert different == unused  # no released model has v_posterior
    other = schedule_buffers(Schedule(ScheduleConfig(config.kind, config.timesteps, start, end * 1.0001)))
    assert not any(
        torch.equal(other[key], expected[key]) for key in ("betas", "alphas_cumprod", "posterior_mean_coef1")
    )


def test_six_updates_of_the_ema_equal_the_original():
    expected = load_file(vectors.FOLDER / "ema.safetensors")
    model = torch.nn.Linear(3, 2)

    def fill(suffix: str) -> None:
        for name, parameter in model.named_parameters():
            parameter.data = torch.from_numpy(weight_before_update(name, suffix, parameter.shape))

    fill("")
    ema = EMA(model, 0.9999)
    for k in range(6):
        fill(f".{k}")
        ema.update(k, torch.zeros(()))
        for name, parameter in ema.model.named_parameters():
            assert vectors.close(parameter, expected[f"step{k + 1}.{name}"])
    assert not vectors.close(model.weight, expected["step6.weight"], 0.1)


def weight_before_update(name: str, suffix: str, shape: torch.Size):
    """The initial weights (suffix "") or those before an update."""
    return vectors.noise_of(name, shape) if not suffix else vectors.normal("ema", f"{name}{suffix}", shape)
