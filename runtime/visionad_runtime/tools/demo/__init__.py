"""``visionad demo``: the main job end to end, on rendered parts or on the user's own."""
