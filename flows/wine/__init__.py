"""Which cultivar is a wine of? A small pipeline on data that scikit-learn ships."""
