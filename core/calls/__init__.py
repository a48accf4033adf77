"""What a launcher's run() is given: checked, and turned into a command line."""
