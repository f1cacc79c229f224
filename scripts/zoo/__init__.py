"""Makes the built-in suite: fonts, glyph masters, base, experts and the files that the repository ships."""
