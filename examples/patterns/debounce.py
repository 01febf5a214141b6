"""Debounce: many changes come in a row; when none has come for a minute, they are announced, all at once."""

from ckworkflow import create_hook, step, workflow


@step
async def announce(channel_id: str, changes: list[str]) -> None: ...


@workflow
async def announce_changes(channel_id: str, first: str) -> int:
    changes = [first]
    async with create_hook(f"changes:{channel_id}") as more:
        try:
            while True:
                changes.append(await more.next(timeout="1 minute"))
        except TimeoutError:
            pass
        await more.close()
        changes += more.pending()  # what came while the last wait ended
    await announce(channel_id, changes)
    return len(changes)
