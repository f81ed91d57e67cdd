"""Who may drive a saga: whoever's lease it is."""

from manager.store import operations
from manager.store.pool import open_pool
from tests.fleet.fleet import Fleet
from tests.sagas.scenarios import SMB


async def test_lease_renewal_just_after_the_end_does_not_take_the_saga_from_its_driver(stowage: Fleet) -> None:
    """It would be cancelled between the commit of its last line and what follows it (seen under load)."""
    await stowage.manager()
    await stowage.agent("hv1")
    assert (await stowage.api("POST", "/v1/storage_backends", SMB)).status == 201
    [row] = await stowage.sql("SELECT id, owner, state FROM operation")
    assert row["state"] == "succeeded"
    pool = await open_pool(stowage.config("manager-2").database_url, size=2)
    try:
        async with pool.acquire() as connection:
            for owner, ours in ((row["owner"], {str(row["id"])}), ("manager-2:1", set[str]())):
                renewed = await operations.renew_leases(connection, owner=owner, ids=[str(row["id"])], lease_s=1.0)
                assert renewed == ours
    finally:
        await pool.close()
