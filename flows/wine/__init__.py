"""Classify wines by cultivar: a small pipeline on a data set that scikit-learn ships. Read model.py first."""
