"""What the front and the worker do for the pages."""
