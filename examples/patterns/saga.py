"""Saga: each step that succeeds leaves behind how to undo it; what fails undoes all of them, the last one first."""

from collections.abc import Awaitable, Callable

from ckworkflow import FatalError, step, workflow


@step
async def reserve_seat(event: str, user_id: str) -> str:
    return f"seat for {user_id} at {event}"


@step
async def release_seat(seat: str) -> None: ...


@step
async def charge(user_id: str, cents: int) -> str:
    return f"payment of {cents} by {user_id}"


@step
async def refund(payment: str) -> None: ...


@step
async def send_ticket(user_id: str, seat: str) -> None: ...


@workflow
async def buy_ticket(event: str, user_id: str, cents: int) -> str:
    undo: list[Callable[[], Awaitable[None]]] = []
    try:
        seat = await reserve_seat(event, user_id)
        undo.append(lambda: release_seat(seat))
        payment = await charge(user_id, cents)
        undo.append(lambda: refund(payment))
        await send_ticket(user_id, seat)
    except (FatalError, TimeoutError):
        for each in reversed(undo):
            await each()
        return "undone"
    return seat
