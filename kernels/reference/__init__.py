"""The specification of every number format, in numpy: slow, readable, exact."""
