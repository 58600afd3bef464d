"""`lora-router compare`: two versions answer the same prompts on a running server, judged pair by pair.

`paired` has the statistics, `run` asks the server and scores the answers, `judge` has the base or an adapter
compare two answers, `page` writes the result as one HTML file.
"""
