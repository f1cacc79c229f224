"""Frozen classification heads: from files, from experts, or made from the names of classes."""
