"""The cache in the bucket: its entries are signed with the installation's key, and expired ones are deleted."""

import json

from infra.testing.stack import Stack

ENTRIES = """
import json, os
from prefect_aws import S3Bucket
from trainyard.cache_storage import has_expired, remove
storage = S3Bucket.load("results", _sync=True)
storage.write_path("cache/1e-09-days/test/expired", content=b"{}", _sync=True)
storage.write_path("cache/1-days/test/fresh", content=b"{}", _sync=True)
removed = len(remove(has_expired))
keys = [each["Key"] for each in storage.list_objects("cache/", _sync=True)]
entry = next(key for key in keys if "/search/" in key)
members = sorted(json.loads(storage.read_path(entry, _sync=True)))
print(json.dumps({"removed": removed, "keys": keys, "members": members, "key": len(os.environ["CACHE_SIGNING_KEY"])}))
"""


def test_entries_are_signed_and_expired_ones_are_deleted(stack: Stack) -> None:
    stack.wait_for_first_run()
    found = json.loads(stack.python("worker", ENTRIES).stdout.splitlines()[-1])

    assert found["removed"] >= 1
    assert "cache/1e-09-days/test/expired" not in found["keys"]
    assert "cache/1-days/test/fresh" in found["keys"]
    assert found["members"] == ["metadata", "result", "signature"]
    assert found["key"] == 43
