"""The pages of a station, in a process of their own; needs the extra `page`."""
