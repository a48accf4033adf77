"""The card of a gang: one HTML page that shows what its guards know. Not connected to the guards yet."""
