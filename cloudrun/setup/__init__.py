"""What comes before the first run: which versions are here, what is missing, what the project's file says."""
