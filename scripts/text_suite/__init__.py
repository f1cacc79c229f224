"""The text suite: eight classification tasks on a pretrained sentence encoder, from packages of Debian and PyPI."""
