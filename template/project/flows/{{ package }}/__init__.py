"""Which customers will leave?"""
