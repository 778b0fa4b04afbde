"""Will it rain tomorrow? From daily observations to a registered model."""
