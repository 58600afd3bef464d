"""Commands of `lora-router route` that ask the classifiers of this folder, with no server."""
