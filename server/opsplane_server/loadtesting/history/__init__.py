"""Reading back what was measured in runs that have ended, and keeping a copy of it for others to look at."""
