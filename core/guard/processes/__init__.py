"""The processes of this machine, whoever started them: who descends from whom, and how they end."""
