"""OpenFeature's SDK and its OFREP provider against a server at the address given; prints OK.

Run by test_client.py in an environment that has both and nothing of ours.
"""

import sys

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason

address, token, unit, arm = sys.argv[1:]
headers = {"authorization": f"Bearer {token}"}
api.set_provider(OFREPProvider(f"http://{address}", headers_factory=lambda: headers))
client = api.get_client()
somebody = EvaluationContext(unit, {"country": "FR", "age": 7})

found = client.get_string_details("acme-tone", "nothing", somebody)
assert (found.value, found.variant, found.reason) == (arm, arm, Reason.SPLIT), found
assert found.flag_metadata["phase"] == 1, found
hidden = client.get_string_details("legal-tone", "nothing", somebody)
assert (hidden.value, hidden.error_code) == ("nothing", ErrorCode.FLAG_NOT_FOUND), hidden
nobody = client.get_string_details("acme-tone", "nothing", EvaluationContext())
assert (nobody.value, nobody.error_code) == ("nothing", ErrorCode.TARGETING_KEY_MISSING), nobody
outside = client.get_string_details("acme-half", "nothing", somebody)
assert (outside.value, outside.reason, outside.error_code) == ("nothing", Reason.DEFAULT, None), outside
headers.clear()
refused = client.get_string_details("acme-tone", "nothing", somebody)
assert (refused.value, refused.error_code) == ("nothing", ErrorCode.GENERAL), refused
print("OK")
