"""What jsonargparse says of a configuration, in one line and with the nearest name that exists."""

import re


def explain(message: str) -> str:
    return message
