"""Cards: what was measured, kept as YAML, and the tables made from them."""
