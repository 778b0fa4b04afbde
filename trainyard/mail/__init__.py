"""Mail about runs: the message, and sending it over SMTP."""
