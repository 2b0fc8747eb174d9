"""The stages from a decoded image to its score as one call, and the self-test of the engine."""
