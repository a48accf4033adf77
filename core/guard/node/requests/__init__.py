"""What a task asks of its guard: each request gets exactly one reply, now or once what it waits for has happened."""
