"""What `visionad watch`, `visionad serve` and a station do with each image: inspect it, and follow the promise of its class."""
