"""What a run says while it trains: metrics.jsonl always, a progress bar on a terminal, plain lines elsewhere."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.training.distributed import World
from latentdiff.training.settings import TrainConfig

# on screen
SHOWN = ("loss", "nll", "l1", "perceptual", "disc_loss", "adaptive", "grad_norm", "lr", "images_per_second")


class Log:
    """Collects numbers on the device and reads them once per report, so that no step waits for the host."""

    def __init__(
        self, folder: Path, world: World, first: int, train: TrainConfig, report_to: str | None = None
    ) -> None:
        self.folder, self.path, self.world, self.train = folder, folder / "metrics.jsonl", world, train
        self.sums: dict[str, Tensor] = {}
        self.first, self.report_to = first, report_to
        self.rows = [row for row in read_metrics(self.path) if row["step"] <= first]  # of earlier starts
        self.earlier = self.rows[-1]["seconds"] if self.rows else 0.0  # seconds of training in them
        self.bad_steps = max((row.get("bad_steps") or 0 for row in self.rows), default=0)
        self.started = time.monotonic()
        self.bar = self.reporter = None

    def start(self) -> None:
        """Training begins. Until here nothing is written: a run that is refused leaves no trace."""
        if self.world.is_main:
            if self.path.exists():  # drop what came after the checkpoint that the run goes on from
                aside = self.path.with_name(".metrics.tmp")
                aside.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
                os.replace(aside, self.path)
            self.reporter = _reporter(self.report_to, self.folder, self.first)
            self.bar = _bar(self.first, self.train.steps)
        self.window_start, self.window_step, self.away = time.monotonic(), self.first, 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier starts included."""
        return self.earlier + time.monotonic() - self.started

    @torch.no_grad()
    def add(self, **values: Tensor) -> None:
        """Numbers of one step; the report shows their mean over steps and ranks."""
        for name, value in values.items():
            value = torch.stack([value.detach().float().nan_to_num(0.0, 0.0, 0.0), torch.isfinite(value).float()])
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def report(self, step: int, **extra: float) -> dict[str, float] | None:
        """Every `log_every` steps (called after each, with the steps done): write, show and return the means."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        if step % self.train.log_every and step != self.train.steps:
            return None
        names = sorted(self.sums)
        sums = self.world.sum(torch.stack([self.sums[name] for name in names])).tolist() if names else []
        values = {name: total / count if count else math.nan for name, (total, count) in zip(names, sums)}
        self.sums = {}
        now, done = time.monotonic(), step - self.window_step
        pace = done / max(now - self.window_start - self.away, 1e-9)
        self.window_start, self.window_step, self.away = now, step, 0.0
        if "skipped" in values:
            self.bad_steps += round(values["skipped"] * done)
            values["bad_steps"] = self.bad_steps
        if values.get("skipped") == 1 and done >= 20:
            raise UserError(
                f"no gradient of the last {done} steps was finite, so nothing was learned; a smaller train.lr, "
                f"train.precision=fp32, or data without broken values would help"
            )
        values |= extra | {"images_per_second": pace * self.train.batch_size}
        self.write(step, **values)
        self._show(step, values, (self.train.steps - step) / max(pace, 1e-9))
        return values

    def write(self, step: int, **values: float) -> None:
        """One line of metrics.jsonl."""
        if self.world.is_main:
            row = {"step": step, "seconds": round(self.seconds, 2)}
            row |= {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in values.items()}
            try:
                with open(self.path, "a") as file:
                    file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise UserError(f"cannot write {self.path}: {error}; the last checkpoint is intact") from error
            if self.reporter is not None:
                self.reporter.add(step, {name: value for name, value in values.items() if math.isfinite(value)})

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Numbers of held-out data: written and shown."""
        self.write(step, **values)
        self.say(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def say(self, text: str) -> None:
        """A line for the reader, above the bar."""
        if self.world.is_main:
            print(text, flush=True) if self.bar is None else self.bar.write(text)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside (validation, pictures, a checkpoint) is no training: the pace does not count it."""
        began = time.monotonic()
        yield
        self.away += time.monotonic() - began

    def close(self) -> None:
        for open_one in (self.bar, self.reporter):
            if open_one is not None:
                open_one.close()

    def _show(self, step: int, values: dict[str, float], left: float) -> None:
        if not self.world.is_main:
            return
        components = [name for name in values if name.startswith("grad_") and name not in SHOWN]
        shown = {name: values[name] for name in (*SHOWN, *components) if name in values}
        if self.bar is not None:
            self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
        else:
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
            print(f"step {step}/{self.train.steps}  {numbers}  left {clock(left)}", flush=True)


def read_metrics(path: Path) -> list[dict]:
    """The rows of metrics.jsonl, none where there is no such file; a line cut short by a kill is left out."""
    rows = []
    if not path.exists():
        return rows
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def clock(seconds: float) -> str:
    """4000 -> '1:06:40'."""
    minutes, seconds = divmod(int(min(seconds, 3.6e6)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _bar(first: int, steps: int):
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True)


class _TensorBoard:
    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first + 1)  # hides what a resumed run repeats

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, folder: Path, first: int) -> None:
        import wandb

        self.run = wandb.init(project="latentdiff", name=folder.name, dir=folder, resume="allow", id=folder.name)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)  # steps that it has already it keeps as they are

    def close(self) -> None:
        self.run.finish()


def _reporter(name: str | None, folder: Path, first: int) -> _TensorBoard | _Wandb | None:
    """Where numbers go besides metrics.jsonl; nowhere unless asked for."""
    return {"tensorboard": _TensorBoard, "wandb": _Wandb}[name](folder, first) if name else None


def plan(rows: dict[str, str]) -> str:
    """The screen that a run opens with: name and fact per line."""
    return "\n".join(f"  {name:<12}{fact}" for name, fact in rows.items())
