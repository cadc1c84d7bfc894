"""Temporary: the data helper writes this file."""

from latentdiff.data.loader import Subset  # noqa: F401
