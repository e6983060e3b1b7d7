"""What images are paid for."""
