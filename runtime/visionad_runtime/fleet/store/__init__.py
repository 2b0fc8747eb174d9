"""Models and banks of a fleet: content-addressed, signed, pulled by any station. Needs the extra ``fleet``."""
