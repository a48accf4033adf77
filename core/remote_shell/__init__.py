"""Commands on other nodes, for frameworks that start their own parts: over SSH, or over the gang's channel."""
