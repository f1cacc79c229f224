"""Growing and shrinking finished banks."""
