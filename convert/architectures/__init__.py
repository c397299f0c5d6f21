"""One data file per model family."""
