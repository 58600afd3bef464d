"""How much of an adapter folder is read: every size an outsider controls has a cap here."""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MANIFEST_BYTES = 256 * KIB
CONFIG_BYTES = MIB
HEADER_BYTES = MIB
PROBES_BYTES = MIB
REPORT_BYTES = MIB
SIGNATURE_BYTES = 4 * KIB
WEIGHTS_BYTES = 16 * GIB  # the true limit is base shapes times max_rank, checked before reading
FOLDER_ENTRIES = 1_000

JSON_PARTS = 1 << 16  # brackets and colons: each may cost a Python object, and objects cost collections
TENSORS = 4_096  # or what the base has room for

EXAMPLES = 1_000
EXAMPLE_CHARS = 4_000
KEYWORDS = 500
KEYWORD_CHARS = 100
PROMPT_CHARS = 16_000

PATTERNS = 4_096
PATTERN_CHARS = 256
MODULES = 4_096
INVOCATION = 256  # tokens
TOKEN = 1 << 31  # ids are below
PROBES = 256
PROBE_LINES = 4_096

RANK = 65_536
ALPHA = 1e6
TENSOR_DIMS = 8
