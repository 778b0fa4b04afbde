"""The prediction API: serves the champion of each registered model and follows its alias."""
