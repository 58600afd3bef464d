"""`lora-router compare`: two versions answer the same prompts on a running server, judged pair by pair.

`run` asks the server and scores the answers, `judge` has the base or an adapter compare two answers, and
`page` writes the result as one HTML file. The statistics are those of `router.paired`.
"""
