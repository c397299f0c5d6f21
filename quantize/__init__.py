"""Which tensor gets which scheme, and with what knowledge."""
