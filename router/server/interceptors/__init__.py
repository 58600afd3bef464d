"""What happens around every call, whatever its method."""
