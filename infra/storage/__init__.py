"""What uses an installation's space, and what the next clean-up removes."""
