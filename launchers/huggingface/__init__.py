"""Cards that follow the training of a Hugging Face Trainer, under any launcher or none."""
