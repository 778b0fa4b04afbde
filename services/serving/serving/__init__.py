"""Answers with the registry's champions: follows the alias, swaps versions while requests go on."""
