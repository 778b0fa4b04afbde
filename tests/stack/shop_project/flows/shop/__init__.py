"""A project of its own for test_own_project.py: will a shop be busy in an hour?"""
