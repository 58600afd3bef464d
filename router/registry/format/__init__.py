"""The adapter folder: every file read once, checked and parsed; nothing in it is trusted."""
