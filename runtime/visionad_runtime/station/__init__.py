"""Line operation: where images arrive, and what is noted of them."""
