"""The weather example: trains and registers models that predict whether it will rain tomorrow."""
