"""Objects, folders and results in the flow's datastore."""
