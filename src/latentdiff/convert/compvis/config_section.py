"""Typed reading and writing of the configs of the original release; errors name the field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from latentdiff.config import UserError

REQUIRED = object()


class Field(NamedTuple):
    """A field of the original's config that is also a field of a settings class."""

    src: str
    dst: str
    kind: type  # int, float, bool, or tuple (of int)
    default: Any = REQUIRED  # in the original's code


class ConfigSection:
    """A mapping of the config, with its path for error messages."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{path} is {values!r}; it must be a mapping, as in the original release's config.yaml")
        self.values, self.path = values, path

    def get(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.values.get(name, default)
        if value is REQUIRED:
            raise UserError(f"{self.path} has no {name}, which is needed to convert the model")
        return value

    def section(self, name: str, default: Any = REQUIRED) -> ConfigSection:
        value = self.get(name, default)
        return ConfigSection({} if value is None else value, name if self.path == "config" else f"{self.path}.{name}")

    def target(self) -> str:
        """The class name at the end of `target`, without its package."""
        return str(self.get("target")).rpartition(".")[2]

    def refuse(self, name: str, allowed: str) -> NoReturn:
        raise UserError(f"{self.path}.{name} is {self.values.get(name)!r}; {allowed}")

    def integer(self, name: str, default: Any = REQUIRED) -> int:
        value = self.get(name, default)
        if type(value) is not int:
            self.refuse(name, "it must be a whole number")
        return value

    def integers(self, name: str, default: Any = REQUIRED) -> tuple[int, ...]:
        value = self.get(name, default)
        if not isinstance(value, (list, tuple)) or not all(type(item) is int for item in value):
            self.refuse(name, "it must be a list of whole numbers")
        return tuple(value)

    def number(self, name: str, default: Any = REQUIRED) -> float:
        try:
            return float(self.get(name, default))  # YAML reads 1e-4 as text
        except (TypeError, ValueError):
            self.refuse(name, "it must be a number")

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        value = self.get(name, default)
        if value not in allowed:
            raise UserError(f"{self.path}.{name} is {value!r}; it must be one of {', '.join(allowed)}")
        return value

    def require(self, name: str, value: Any, default: Any = REQUIRED) -> None:
        """Refuse any other value than this one."""
        if self.get(name, default) != value:
            raise UserError(f"{self.path}.{name} is {self.get(name, default)!r}; only {value!r} can be converted")

    def fields(self, table: Iterable[Field]) -> dict[str, Any]:
        """Arguments of a settings class."""
        readers = {int: self.integer, float: self.number, tuple: self.integers, bool: lambda *a: bool(self.get(*a))}
        return {field.dst: readers[field.kind](field.src, field.default) for field in table}


def write_fields(table: Iterable[Field], settings: Any) -> dict[str, Any]:
    """The inverse of ConfigSection.fields."""
    values = {field.src: getattr(settings, field.dst) for field in table}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def refuse_export(setting: str) -> NoReturn:
    raise UserError(f"{setting} has no counterpart in the original release; this run cannot be exported to its format")
