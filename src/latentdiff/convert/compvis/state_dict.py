"""The tensors of a checkpoint of the original release: what is taken, what is missing, what is left over."""

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.convert.compvis.key_map import AVERAGE, Place, Weights, average_name, schedule_buffers
from latentdiff.diffusion.schedule import Schedule

LEFT = {  # what a checkpoint also holds: the start of its name -> what it is
    "loss.": "loss", "first_stage_model.loss.": "loss", "cond_stage_model.loss.": "loss", "ddim_": "sampler's table",
    "lvlb_weights": "schedule", "logvar": "loss", "model_ema.": "average", "model.": "raw weight beside its average",
}  # fmt: skip


class State:
    """Tensors by name; those that are taken are noted, and so are those that are not there or have other shapes."""

    def __init__(self, tensors: dict[str, Tensor], averages: bool) -> None:
        self.tensors, self.taken = tensors, set()
        self.missing, self.wrong = [], []
        counters = {f"{AVERAGE}decay", f"{AVERAGE}num_updates"}
        self.averages = averages and any(name.startswith(AVERAGE) for name in tensors.keys() - counters)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.tensors)

    def take(self, places: dict[str, Place], parameters: dict[str, Tensor]) -> Weights:
        """Our names -> weights in our shapes; of averaged ones the average."""
        mine = {}
        for ours, place in places.items():
            value = self._find(place.name)
            wanted = place.shape(parameters[ours].shape)
            if value is not None and list(value.shape) != wanted:
                self.wrong.append(f"{place.name} has shape {list(value.shape)}, not {wanted}")
            elif value is not None:
                mine[ours] = place.to_ours(value)
        return mine

    def number(self, name: str) -> float | None:
        """A tensor of one number; None, and missing, where it is not there."""
        value = self._find(name)
        return None if value is None else value.double().item()

    def drop(self, prefix: str, part: str = "") -> None:
        """What begins so (and contains `part`) is known, and not needed."""
        self.taken |= {name for name in self.tensors if name.startswith(prefix) and part in name}

    def _find(self, name: str) -> Tensor | None:
        average = average_name(name)
        if self.averages and (average in self.tensors or name.startswith("model.")):
            name = average
        if name not in self.tensors:
            self.missing.append(name)
            return None
        self.taken.add(name)
        return self.tensors[name]

    def check(self) -> None:
        """Refuse a checkpoint of which something is missing or does not fit; nothing is guessed."""
        if self.missing or self.wrong:
            parts = [f"{len(self.missing)} tensors are missing: {_some(self.missing)}"] if self.missing else []
            parts += [f"{len(self.wrong)} do not fit: {_some(self.wrong)}"] if self.wrong else []
            raise UserError(f"the checkpoint does not hold this model: {'; '.join(parts)}")

    def check_schedule(self, schedule: Schedule) -> None:
        """Note the tables of the schedule, and say where they are not those of the config."""
        wanted = schedule_buffers(schedule)
        found = {name: self.tensors[name].float() for name in wanted.keys() & self.tensors.keys()}
        self.taken |= found.keys()
        wrong = [name for name in wanted if name in found and not _close(found[name], wanted[name])]
        if wrong:
            print(f"WARNING: the config's schedule is used; the file's own differs in {', '.join(wrong)}")

    def report(self) -> None:
        """Say what was left out."""
        rest, kinds = sorted(self.tensors.keys() - self.taken), {}
        for name in rest:
            kind = next((kind for start, kind in LEFT.items() if name.startswith(start)), "unknown")
            kinds.setdefault(kind, []).append(name)
        for kind, names in kinds.items():
            print(f"left out, {kind} ({len(names)}): {', '.join(names) if kind == 'unknown' else _some(names, 2)}")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def _some(names: list[str], count: int = 20) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
