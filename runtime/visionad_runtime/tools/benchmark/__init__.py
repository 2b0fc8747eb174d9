"""``visionad bench``: what an inspection costs here, stage by stage, beside the bare engine and the other backends."""
