"""The task's end of the connection to its guard, and guards for processes outside of any gang."""
