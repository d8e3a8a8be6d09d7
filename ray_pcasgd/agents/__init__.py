"""What takes the steps: passive, without clock, Ray or files."""
