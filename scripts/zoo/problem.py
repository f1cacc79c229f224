"""The one exception that the command line shows as a single line."""


class Problem(Exception):
    """Something that the reader of the message can put right."""
