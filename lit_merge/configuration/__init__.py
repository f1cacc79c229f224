"""Configurations: YAML whose names stay as they are written, parsed with mistakes told in one line."""

from lit_merge.configuration.parsing import parsing
from lit_merge.configuration.written import read_written

__all__ = ["parsing", "read_written"]
