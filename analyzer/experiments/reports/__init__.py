"""What is said of a result: text, pictures, and what others published."""
