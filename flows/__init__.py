"""The pipelines: one file or one folder each."""
