"""`make doctor`: finds out what is wrong with an installation, and names what mends it; changes nothing."""
