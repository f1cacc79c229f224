"""The files next to a model's weights: configuration, tokenizer, vocabulary. Judged, trimmed and copied."""
