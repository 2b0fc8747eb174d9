"""The process that works on drafts: it encodes and scores beside the line, at low priority."""
