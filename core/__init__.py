"""The gang: forms it, watches it, ends it. No launcher is named in here."""
