"""MP4 files: writing them chunk by chunk, and reading them back."""
