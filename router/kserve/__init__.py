"""Generated from proto/router/kserve (`make proto`): the messages of the Open Inference Protocol."""
