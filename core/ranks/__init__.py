"""The processes of user code: how functions and scripts are started in them, and what comes back."""
