"""Routing: inputs of which nobody says whose they are, each to the task that they look like."""
