"""Images from folders, from Hugging Face's data sets and from the built-in suite; corruptions, splits and leaks."""
