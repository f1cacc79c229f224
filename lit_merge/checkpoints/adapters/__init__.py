"""PEFT's LoRA folders, read as the base with a low-rank update in each weight."""
