"""The PyTorch reference as a plug-in of the runtime's tools: a predictor for evaluations and a baseline for benchmarks."""
