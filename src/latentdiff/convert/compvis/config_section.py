"""Typed reading and writing of the configs of the original release; errors name the field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, NoReturn

from latentdiff.config import UserError

REQUIRED = object()
KINDS = {int: "a whole number", float: "a number", tuple: "a list of whole numbers", bool: "true or false"}


class Field(NamedTuple):
    """A field of the original's config that is also a field of a settings class."""

    src: str
    dst: str
    kind: type  # of KINDS
    default: Any = REQUIRED  # in the original's code


class ConfigSection:
    """A mapping of the config, with its path for error messages."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{path} is {values!r}; it must be a mapping, as in the original release's config.yaml")
        self.values, self.path = values, path

    def get(self, name: str, default: Any = REQUIRED, kind: type | None = None) -> Any:
        """The value of a field; kind: of KINDS, which it must be."""
        value = self.values.get(name, default)
        if value is REQUIRED:
            raise UserError(f"{self.path} has no {name}, which is needed to convert the model")
        try:
            return {int: _integer, tuple: _integers}.get(kind, kind)(value) if kind else value  # YAML: 1e-4 is text
        except (TypeError, ValueError):
            self.refuse(name, f"it must be {KINDS[kind]}")

    def section(self, name: str, default: Any = REQUIRED) -> ConfigSection:
        value = self.get(name, default)
        return ConfigSection({} if value is None else value, name if self.path == "config" else f"{self.path}.{name}")

    def target(self) -> str:
        """The class name at the end of `target`, without its package."""
        return str(self.get("target")).rpartition(".")[2]

    def refuse(self, name: str, allowed: str) -> NoReturn:
        raise UserError(f"{self.path}.{name} is {self.values.get(name)!r}; {allowed}")

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        value = self.get(name, default)
        if value not in allowed:
            self.refuse(name, f"it must be one of {', '.join(allowed)}")
        return value

    def require(self, name: str, value: Any, default: Any = REQUIRED) -> None:
        """Refuse any other value than this one."""
        if self.get(name, default) != value:
            raise UserError(f"{self.path}.{name} is {self.get(name, default)!r}; only {value!r} can be converted")

    def fields(self, table: Iterable[Field]) -> dict[str, Any]:
        """Arguments of a settings class."""
        return {field.dst: self.get(field.src, field.default, field.kind) for field in table}


def write_fields(table: Iterable[Field], settings: Any) -> dict[str, Any]:
    """The inverse of ConfigSection.fields."""
    values = {field.src: getattr(settings, field.dst) for field in table}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def refuse_export(setting: str) -> NoReturn:
    raise UserError(f"{setting} has no counterpart in the original release; this run cannot be exported to its format")


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise TypeError
    return value


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(map(_integer, value))
