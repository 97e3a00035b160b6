"""The client: Connection and Model (blocking), AsyncConnection and AsyncModel (asyncio)."""
