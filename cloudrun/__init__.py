"""Rent an EC2 machine for exactly as long as a training script needs it."""
