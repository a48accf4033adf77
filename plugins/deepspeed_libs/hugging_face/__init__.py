"""The names under which flows written for the package metaflow-deepspeed import what is for Hugging Face."""
