"""The tensors of a checkpoint of the original release: which are read, missing and left over."""

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.convert import key_map
from latentdiff.convert.compvis.key_maps import EMA, ema_name, schedule_buffers
from latentdiff.convert.key_map import KeyMap, Shapes, Weights
from latentdiff.diffusion.schedule import Schedule

UNUSED = {  # prefix of a name -> what it is
    "loss.": "loss", "first_stage_model.loss.": "loss", "cond_stage_model.loss.": "loss", "ddim_": "sampler's table",
    "lvlb_weights": "schedule", "logvar": "loss", EMA: "EMA", "model.": "raw weight, of which the EMA is used",
}  # fmt: skip


class CheckpointReader:
    """Reads tensors by name; records which are read, missing or of the wrong shape.

    Attributes:
        uses_ema: whether EMA weights are read where the checkpoint has them.
        used: names of the tensors that were read or are known to be unnecessary.
    """

    def __init__(self, tensors: dict[str, Tensor], use_ema: bool) -> None:
        self.tensors, self.used = tensors, set()
        self.missing, self.wrong = [], []
        counters = {f"{EMA}decay", f"{EMA}num_updates"}
        self.uses_ema = use_ema and any(name.startswith(EMA) for name in tensors.keys() - counters)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)

    def read(self, keys: KeyMap, shapes: Shapes) -> Weights:
        """Convert weights; missing and wrong ones are recorded."""
        keys = {dst: entry._replace(src=tuple(map(self._stored_name, entry.src))) for dst, entry in keys.items()}
        weights, missing, wrong = key_map.to_dst(self.tensors, keys, shapes)
        self.missing += missing
        self.wrong += wrong
        self.used |= {src for entry in keys.values() for src in entry.src} & self.tensors.keys()
        return weights

    def read_number(self, name: str) -> float | None:
        """A tensor with one number; None if it is missing, which is recorded."""
        self.used.add(name)
        if name not in self.tensors:
            self.missing.append(name)
            return None
        return self.tensors[name].double().item()

    def ignore(self, prefix: str, infix: str = "") -> None:
        """Count tensors with this prefix as used; infix: only those with this text in their name."""
        self.used |= {name for name in self.tensors if name.startswith(prefix) and infix in name}

    def _stored_name(self, name: str) -> str:
        is_averaged = ema_name(name) in self.tensors or name.startswith("model.")
        return ema_name(name) if self.uses_ema and is_averaged else name

    def check_complete(self) -> None:
        """Raise UserError if a tensor was missing or had the wrong shape."""
        if self.missing or self.wrong:
            problems = [f"{len(self.missing)} tensors are missing: {_listed(self.missing)}"] if self.missing else []
            problems += [f"{len(self.wrong)} do not fit: {_listed(self.wrong)}"] if self.wrong else []
            raise UserError(f"the checkpoint does not fit this model: {'; '.join(problems)}")

    def check_schedule(self, schedule: Schedule) -> None:
        """Warn if the checkpoint's tables of the noise schedule are not those of the config."""
        expected = schedule_buffers(schedule)
        stored = {name: self.tensors[name].float() for name in expected if name in self.tensors}
        self.used |= stored.keys()
        different = [name for name, table in stored.items() if not _close(table, expected[name])]
        if different:
            print(f"WARNING: the schedule of the config is used; the checkpoint differs in {', '.join(different)}")

    def report_unused(self) -> None:
        """Print the tensors that were not read."""
        kinds: dict[str, list[str]] = {}
        for name in sorted(self.tensors.keys() - self.used):
            kind = next((kind for prefix, kind in UNUSED.items() if name.startswith(prefix)), "unknown")
            kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            listed = ", ".join(names) if kind == "unknown" else _listed(names, 2)
            print(f"not imported, {kind} ({len(names)}): {listed}")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def _listed(names: list[str], count: int = 20) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
