"""What edges have together: documents that hold at all of them, and what their clients have used."""
