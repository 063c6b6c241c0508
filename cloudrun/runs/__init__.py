"""One run: its project checked and shipped, followed on its unit, brought home, or come back to later."""
