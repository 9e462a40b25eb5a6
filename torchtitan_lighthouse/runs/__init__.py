"""What runs left behind: their metrics, their comparison, their charts. No torch."""
