"""What surrounds inspection: evaluation, benchmarks, the demo, diagnosis. Nothing below imports it."""
