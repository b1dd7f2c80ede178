"""Option specs: what a user may ask, checked before torch loads."""
