"""The work of long operations: one handler a kind, resumable after the death of its process."""
