"""Adapters of PEFT's, made of a task bank: what each task, or the merge, adds to a base model."""
