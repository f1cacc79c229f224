"""Texts from tables, as token ids."""
