"""The reference in PyTorch, for the runtime's tools: it predicts in an evaluation and is timed in a benchmark."""
