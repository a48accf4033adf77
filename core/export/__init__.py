"""Metrics for other programs, from the task's side: what is to be exported, and the program for OpenTelemetry."""
