"""The platform's own flows, registered beside the project's: monitoring and mail."""
