"""The paper's experiments: every method at every budget on every network, in one pass and in rounds."""
