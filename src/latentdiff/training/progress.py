"""Progress bars on a terminal (tqdm, where it is installed)."""

import os
import sys
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any


def tqdm_bar(total: int, desc: str | None = None, unit: str = "step", **options) -> Any | None:
    """A tqdm progress bar on rank 0's terminal; None without a terminal or without tqdm."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=desc, unit=unit, **options)


def bar(total: int, desc: str, unit: str = "step") -> Any:
    """A progress bar with update() and close(), which do nothing where no bar can be shown."""
    shown = tqdm_bar(total, desc, unit, leave=False)
    return SimpleNamespace(update=lambda: None, close=lambda: None) if shown is None else shown


def track(items: Iterable[Any], total: int, desc: str) -> Iterator[Any]:
    """Yield the items, with a progress bar if there is more than one."""
    shown = bar(total, desc, "") if total > 1 else None
    for item in items:
        yield item
        if shown is not None:
            shown.update()
    if shown is not None:
        shown.close()
