"""Configurations: YAML and JSON whose names stay as they are written, parsed with mistakes told in one line."""
