import pytest

for suite in ("ledger_conformance", "result_store_conformance", "ledger_machine"):
    pytest.register_assert_rewrite(f"dask_fleet.testing.{suite}")
