"""The launchers: each one a thin decorator and the pure plan of its command. None imports another."""
