"""The version of this distribution (the wheel's; `make check-version` compares it with the file VERSION)."""

__version__ = "2.0.0"
