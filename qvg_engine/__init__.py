"""A paged-attention engine that generates many long auto-regressive videos at once."""
