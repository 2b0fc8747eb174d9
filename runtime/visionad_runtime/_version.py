"""The version, alone: modules read it from here without importing the package's public names."""

__version__ = "0.1.0"
