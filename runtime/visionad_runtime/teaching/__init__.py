"""What chooses, judges or calibrates a bank with an open inspector."""
