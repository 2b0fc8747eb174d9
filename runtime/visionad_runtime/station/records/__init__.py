"""Records of parts, and what is counted from them."""
