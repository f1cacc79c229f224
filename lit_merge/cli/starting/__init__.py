"""A first configuration from a folder of experts: what they are, what lies next to them, and the YAML of both."""

from lit_merge.cli.starting.configuration_text import configuration_text
from lit_merge.cli.starting.found_files import FoundFiles, find_files
from lit_merge.cli.starting.model_kind import ModelKind, kind_of
