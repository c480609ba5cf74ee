"""The names that configuration fields may have; the modules that give them meaning import them."""

METHODS = ("sft", "kto")
TUNINGS = ("lora", "full")
AUTO = "auto"  # follows from the model and the device, and is recorded (cost/auto.py)
DTYPES = ("bfloat16", "float32")
ATTENTION = ("xla", "cudnn", "splash")  # cudnn: NVIDIA GPUs; splash: TPUs
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # projections that LoRA can adapt
SCHEDULES = ("constant", "linear", "cosine")
REMAT = ("none", "projections", "full")
RESTORE = ("latest", "sound")
GATES = ("require", "report")

LOSS_TYPES = ("kto", "apo_zero_unpaired")
PRESETS = ("emjax", "trl", "halos", "llama_factory")
ORDERS = ("shuffled", "stratified", "given")
BALANCES = ("none", "equal", "williams")

# The first two change what selection makes of the ratings; the others change what was rated, and by
# whom.
CONTROLS = ("none", "shuffled_ratings", "swapped_labels", "benign_ratings", "foreign_text")
SCHEMES = ("exact", "per_scenario", "draw", "fixed_biased")
AGGREGATES = ("sum", "mean", "last")
PERSONS = ("first", "third")
VIEWS = ("prefix", "whole")
READOUTS = ("logprobs", "text")
PREFERENCE = ("strip", "keep")
SCOPES = ("global", "user", "scenario", "user_type")
NORMALISE = ("none", "user_type", "scenario")
REFERENCES = ("base", "previous")
MODES = ("add", "replace")

JUDGES = ("rule", "endpoint", "engine")
MATCHES = ("last", "original")
