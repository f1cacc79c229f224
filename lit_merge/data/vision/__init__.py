"""The 8, 14 and 20 vision tasks of the literature, as they lie on a disk."""
