"""The kinds of message that the package sends its users."""


class MergeError(ValueError):
    """A mistake that the user can mend, told in one line: what is wrong, where, what was expected, what to do.

    The command line prints the line and exits with 2. From Python, `task` and `weight` hold the names that the
    message speaks of, where there are any.
    """

    def __init__(self, message: str, *, task: str | None = None, weight: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.task = task
        self.weight = weight


class MisfitError(MergeError):
    """Experts that do not fit together. The message is of the first difference; `all` holds every one."""

    def __init__(self, differences: list[MergeError]) -> None:
        first = differences[0]
        super().__init__(str(first), task=first.task, weight=first.weight)
        self.all = differences


class MergeWarning(UserWarning):
    """Something that is allowed but probably not meant."""
