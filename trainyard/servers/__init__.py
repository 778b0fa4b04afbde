"""What the platform's web servers share; flows do not import it."""
