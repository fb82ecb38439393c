"""Backups: copies of instances that outlive them, proven restores, schedules."""
