"""What a user may ask, checked before torch loads."""
