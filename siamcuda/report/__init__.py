"""Pictures of a run: each function takes numbers and returns the bytes of a PNG."""
