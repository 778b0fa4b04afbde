"""Keep blocks under the installation's key, PREFECT_SERVER_ENCRYPTION_KEY.

Without one Prefect generates a key and keeps it in its database, beside the blocks that it encrypts: each copy of the
database opens them. With one it uses that alone, and could not read the blocks of an installation that began without.
"""

import asyncpg
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

DATABASE_KEY = "SELECT value ->> 'fernet_key' FROM configuration WHERE key = 'ENCRYPTION_KEY' FOR UPDATE"
BLOCKS = """
    SELECT id, block_type_name || '/' || name AS slug, data #>> '{}' AS data
    FROM block_document WHERE jsonb_typeof(data) = 'string' ORDER BY name
"""


async def adopt_blocks(connection: asyncpg.Connection, key: str, former: str = "") -> None:
    """Encrypt the blocks that are under the database's key, or the installation's former one, under the installation's.

    The database's is deleted.

    It is one transaction, for a moment in which no server writes blocks. Blocks that neither key opens stay as they are
    and are printed.
    """
    own, adopted, unreadable = Fernet(key), 0, []
    async with connection.transaction():
        found = await connection.fetchval(DATABASE_KEY)
        keys = MultiFernet([own, *(Fernet(each) for each in (found, former) if each)])
        for block in await connection.fetch(BLOCKS):
            if opens(own, block["data"]):
                continue
            try:
                data = keys.rotate(block["data"]).decode()
            except InvalidToken:
                unreadable.append(block["slug"] or str(block["id"]))
                continue
            await connection.execute(
                "UPDATE block_document SET data = to_jsonb($2::text) WHERE id = $1", block["id"], data
            )
            adopted += 1
        await connection.execute("DELETE FROM configuration WHERE key = 'ENCRYPTION_KEY'")
    if found or adopted:
        print(f"Encrypted {adopted} blocks under the installation's key.", flush=True)
    if unreadable:
        print(f"Save these blocks again, their key is lost: {', '.join(unreadable)}.", flush=True)


def opens(cipher: Fernet, token: str) -> bool:
    """Return whether a token was encrypted under the cipher's key."""
    try:
        cipher.extract_timestamp(token)
    except InvalidToken:
        return False
    return True
