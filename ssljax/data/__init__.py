"""Sources of examples, the stateless index stream, and preparation."""
