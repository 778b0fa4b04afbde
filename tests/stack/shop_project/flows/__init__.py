"""The pipelines of the shop."""
