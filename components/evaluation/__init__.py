"""A checkpoint becomes metrics with intervals."""
