"""SQL answers scored by what they find: `metric = "execution"` in a recipe uses `metric.py`."""
