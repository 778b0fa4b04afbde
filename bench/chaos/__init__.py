"""Faults at random moments of running pipelines, and a check of every promise after each (`make chaos`)."""
