"""The card of a gang: one HTML page that shows what its guards know, while the step runs and afterwards."""
