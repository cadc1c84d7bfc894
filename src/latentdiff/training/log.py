"""The log of a training run: metrics.jsonl, a progress bar or plain lines, and TensorBoard or Weights & Biases."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.training.distributed import World
from latentdiff.training.files import atomic_path
from latentdiff.training.progress import tqdm_bar
from latentdiff.training.settings import TrainConfig

SHOWN = ("loss", "nll", "l1", "perceptual", "disc_loss", "adaptive_weight", "lr", "grad_norm")  # on the progress line


class Log:
    """Sums metrics on the device and reads them once per report, so that no step waits for the device.

    Args:
        folder: the run's folder.
        start_step: the step from which the run resumes; later lines of metrics.jsonl are dropped.
        report_to: tensorboard, wandb or None.
    """

    def __init__(
        self, folder: Path, world: World, start_step: int, cfg: TrainConfig, report_to: str | None = None
    ) -> None:
        self.folder, self.path, self.world, self.cfg = folder, folder / "metrics.jsonl", world, cfg
        self.start_step, self.report_to = start_step, report_to
        self.sums: dict[str, Tensor] = {}  # name -> [sum, count] of the finite values since the last report
        self.history = [line for line in read_metrics(self.path) if line["step"] <= start_step]
        self.seconds_before = self.history[-1]["seconds"] if self.history else 0.0
        self.total_skipped_steps = max((line.get("total_skipped_steps") or 0 for line in self.history), default=0)
        self.start_time = time.monotonic()
        self.bar = self.reporter = None

    def start(self) -> None:
        """Call when training starts. Nothing is written before, so that a run that raises UserError leaves no files."""
        if self.world.is_main:
            if self.path.exists():
                with atomic_path(self.path) as tmp:
                    tmp.write_text("".join(json.dumps(line) + "\n" for line in self.history))
            reporters = {"tensorboard": _tensorboard, "wandb": _wandb}
            self.reporter = reporters[self.report_to](self.folder, self.start_step) if self.report_to else None
            self.bar = tqdm_bar(self.cfg.steps, initial=self.start_step, dynamic_ncols=True)
        self.window_start, self.window_step, self.excluded_seconds = time.monotonic(), self.start_step, 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the run started, without the time between an interruption and the resumption."""
        return self.seconds_before + time.monotonic() - self.start_time

    @torch.no_grad()
    def add(self, **metrics: Tensor) -> None:
        """Add scalars of one step; the report has their mean over steps and ranks, without non-finite values."""
        for name, value in metrics.items():
            value = torch.stack([value.detach().float().nan_to_num(0.0, 0.0, 0.0), torch.isfinite(value).float()])
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def report(self, step: int, **extra: float) -> dict[str, float] | None:
        """Call after every step, with the number of steps done and further metrics.

        Every `log_every` steps, and at the end, the mean metrics are written, printed and returned; otherwise None.
        """
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        if step % self.cfg.log_every and step != self.cfg.steps:
            return None
        names = sorted(self.sums)
        sums = self.world.all_reduce_sum(torch.stack([self.sums[n] for n in names])).tolist() if names else []
        metrics = {name: total / count if count else math.nan for name, (total, count) in zip(names, sums)}
        self.sums = {}
        now, steps = time.monotonic(), step - self.window_step
        steps_per_second = steps / max(now - self.window_start - self.excluded_seconds, 1e-9)
        self.window_start, self.window_step, self.excluded_seconds = now, step, 0.0
        self._count_skipped(metrics, steps)
        metrics |= extra | {"images_per_second": steps_per_second * self.cfg.batch_size}
        self.write(step, **metrics)
        self._show(step, metrics, eta=(self.cfg.steps - step) / max(steps_per_second, 1e-9))
        return metrics

    def write(self, step: int, **metrics: float) -> None:
        """Append one line to metrics.jsonl; a value that is not finite becomes null."""
        if not self.world.is_main:
            return
        line = {"step": step, "seconds": round(self.seconds, 2)}
        line |= {name: float(f"{value:.6g}") if math.isfinite(value) else None for name, value in metrics.items()}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error}; the last checkpoint is intact") from error
        if self.reporter is not None:
            self.reporter.add(step, {name: value for name, value in metrics.items() if math.isfinite(value)})

    def validation(self, step: int, metrics: dict[str, float]) -> None:
        """Write and print validation metrics."""
        self.write(step, **metrics)
        self.info("  ".join([f"step {step}", *(f"{name} {value:.4g}" for name, value in metrics.items())]))

    def info(self, text: str) -> None:
        """Print a line on rank 0, above the progress bar."""
        if self.world.is_main:
            print(text, flush=True) if self.bar is None else self.bar.write(text)

    @contextlib.contextmanager
    def exclude_from_throughput(self) -> Iterator[None]:
        """The time in this block (validation, sampling, checkpoints) does not count for images/s and the ETA."""
        start = time.monotonic()
        yield
        self.excluded_seconds += time.monotonic() - start

    def close(self) -> None:
        """Close the progress bar and the reporter."""
        for output in (self.bar, self.reporter):
            if output is not None:
                output.close()

    def _count_skipped(self, metrics: dict[str, float], steps: int) -> None:
        """Add up the skipped steps; raise UserError if all of 20 steps or more were skipped."""
        if "skipped_steps" not in metrics:
            return
        self.total_skipped_steps += round(metrics["skipped_steps"] * steps)
        metrics["total_skipped_steps"] = self.total_skipped_steps
        if metrics["skipped_steps"] == 1 and steps >= 20:
            raise UserError(
                f"the last {steps} steps were skipped because their gradients were not finite; use a smaller train.lr "
                f"or train.precision=fp32, and check the data for invalid values"
            )

    def _show(self, step: int, metrics: dict[str, float], eta: float) -> None:
        if not self.world.is_main:
            return
        names = [*SHOWN, *(name for name in metrics if name.startswith("grad_") and name not in SHOWN)]
        fields = [f"{n} {metrics[n]:{'.1e' if n == 'lr' else '.4g'}}" for n in names if n in metrics]
        fields.append(f"{metrics['images_per_second']:.1f} images/s")
        if self.world.device.type == "cuda":
            fields.append(f"{torch.cuda.max_memory_allocated(self.world.device) / 1e9:.1f} GB")
        if self.bar is not None:
            self.bar.set_postfix_str("  ".join(fields), refresh=False)
        else:
            print(f"step {step}/{self.cfg.steps}", *fields, f"eta {clock(eta)}", sep="  ", flush=True)


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl, without incomplete ones; empty if the file does not exist."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def clock(seconds: float) -> str:
    """Format a duration: 4000 -> '1:06:40'."""
    minutes, seconds = divmod(int(min(seconds, 3.6e6)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _tensorboard(folder: Path, start_step: int) -> SimpleNamespace:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder / "tensorboard", purge_step=start_step + 1)  # hides steps that are repeated

    def add(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(f"train/{name}", value, step)

    return SimpleNamespace(add=add, close=writer.close)


def _wandb(folder: Path, start_step: int) -> SimpleNamespace:
    import wandb

    run = wandb.init(project="latentdiff", name=folder.name, dir=folder, resume="allow", id=folder.name)
    return SimpleNamespace(add=lambda step, metrics: run.log(metrics, step=step), close=run.finish)
