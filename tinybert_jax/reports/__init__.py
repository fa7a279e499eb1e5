"""What is printed and written about results."""
